"""What was expected of the methods, and whether the measured cells show it: paired differences with intervals.

An interval over the images of one training seed tells two records apart and not two methods: another seed makes other
records. So a difference shows a method above another only over several seeds, and of one seed that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.methods.cells import METHODS, MODELS, Line, Spec
from benchmarks.methods.seeds import BySeed, psnr_less
from dq_deploy.comparison import paired_psnr
from dq_deploy.quality import Interval

REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"
ONE_SEED = "by one training seed alone"
POST_TRAINING = ("minmax", "eda-dm", "dmq")
TRAINED = ("dilatequant", "quest")


@dataclass(frozen=True)
class Finding:
    """One part of a claim.

    Attributes:
        what: as `dmq over minmax`.
        verdict: one of the four.
        numbers: what was measured.
    """

    what: str
    verdict: str
    numbers: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.verdict}" + (f", {self.numbers}" if self.numbers else "")


@dataclass(frozen=True)
class Claim:
    """An expectation on one model and what became of it."""

    text: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """Not reproduced where a part is not, then not run, then of one seed; reproduced where all parts are."""
        words = {finding.verdict for finding in self.findings}
        return next((word for word in (NOT_REPRODUCED, NOT_RUN, ONE_SEED) if word in words), REPRODUCED)


def _line(lines: Mapping[str, Line], model: str, method: str, bits: str) -> Line | None:
    found = lines.get(Spec(model, method, bits).name)
    return None if found is None or found.cell.error is not None else found


def over(
    lines: Mapping[str, Line], seeds: Mapping[str, BySeed], model: str, bits: str, better: str, worse: str
) -> Finding:
    """Whether one method's images are closer to the float model's than another's, by seed and image."""
    what = f"{better} over {worse}"
    names = [Spec(model, method, bits).name for method in (better, worse)]
    difference = psnr_less(*(seeds.get(name, {}) for name in names))
    if difference is not None:
        return _found(what, difference, REPRODUCED)
    a, b = _line(lines, model, better, bits), _line(lines, model, worse, bits)
    difference = None if a is None or b is None else paired_psnr(a.cell, b.cell)
    return Finding(what, NOT_RUN) if difference is None else _found(what, difference, ONE_SEED)


def _found(what: str, difference: Interval, shown: str) -> Finding:
    numbers = f"{_signed(difference)} dB"
    if difference.low > 0:
        return Finding(what, shown, numbers)
    return Finding(what, NOT_REPRODUCED, numbers + (", the other way" if difference.high < 0 else ", no difference"))


def _signed(value: Interval) -> str:
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def near_float(lines: Mapping[str, Line], model: str, method: str, bits: str) -> Finding:
    """Whether neither the recognised share nor the Frechet distance to real images tells a method from float."""
    found = _line(lines, model, method, bits)
    if found is None or found.cell.quality is None:
        return Finding(method, NOT_RUN)
    quality = found.cell.quality
    words, inside = [f"PSNR {quality['psnr_db']['mean']:.1f} dB"], []
    for name, factor, unit in (("recognised_difference", 100, "points recognised"), ("frechet_difference", 1, None)):
        value = quality[name]
        if value is not None:
            unit = unit or str(quality["frechet_name"])
            words.append(_signed(Interval(**{**value, **{k: factor * value[k] for k in ("mean", "low", "high")}})))
            words[-1] += f" {unit}"
            inside.append(value["low"] <= 0 <= value["high"])
    if not inside:
        return Finding(method, NOT_RUN, "neither a classifier nor real images")
    return Finding(method, REPRODUCED if all(inside) else NOT_REPRODUCED, ", ".join(words))


def claims_of(lines: Mapping[str, Line], model: str, seeds: Mapping[str, BySeed]) -> list[Claim]:
    """The four expectations on one model, in the order of falling bits."""

    def above(bits: str, pairs: list[tuple[str, str]]) -> tuple[Finding, ...]:
        return tuple(over(lines, seeds, model, bits, better, worse) for better, worse in pairs)

    others = [method for method in METHODS if method != "minmax"]
    return [
        Claim(
            f"{model}, W8A8: no method can be told from float",
            tuple(near_float(lines, model, method, "W8A8") for method in METHODS),
        ),
        Claim(f"{model}, W4A8: every method above minmax", above("W4A8", [(m, "minmax") for m in others])),
        Claim(
            f"{model}, W4A6: dmq best of the post-training methods",
            above("W4A6", [("dmq", m) for m in POST_TRAINING if m != "dmq"]),
        ),
        Claim(
            f"{model}, W4A4: dilatequant and quest above the post-training methods",
            above("W4A4", [(t, m) for t in TRAINED for m in POST_TRAINING]),
        ),
    ]


def all_claims(lines: Mapping[str, Line], seeds: Mapping[str, BySeed]) -> list[Claim]:
    """The expectations on every model; `seeds` are the lines of each cell by training seed."""
    return [claim for model in MODELS for claim in claims_of(lines, model, seeds)]
