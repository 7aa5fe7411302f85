"""Cells that were run with several training seeds, with intervals over seeds and images.

Training follows the last bit of every sum, so records of two seeds differ, and their images too. The interval of one
seed, over images alone, is too narrow to tell two methods apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.methods.cells import MODELS, Line, Spec, Terms, all_specs
from dq_deploy.comparison import markdown
from dq_deploy.comparison.table import MISSING, Row, interval_text
from dq_deploy.numerics.arrays import F64
from dq_deploy.quality import Interval, interval_over_seeds

FIRST = "minmax"
"""The method that differences are given to."""

BySeed = Mapping[int, Line]


def lines_by_seed(lines: Iterable[Line], terms: Terms) -> dict[str, BySeed]:
    """The last line of each cell for each seed, under terms that differ in the seed alone; failures are left out."""
    found: dict[str, dict[int, Line]] = {}
    for line in lines:
        if replace(line.terms, seed=terms.seed) == terms:
            found.setdefault(line.spec.name, {})[line.terms.seed] = line
    whole = {name: {s: v for s, v in own.items() if v.cell.error is None} for name, own in found.items()}
    return {name: dict(sorted(own.items())) for name, own in whole.items() if own}


def psnr_of(own: BySeed) -> F64:
    """PSNR to the float model's image, dB [seeds, images]."""
    return np.array([line.cell.psnr_db for line in own.values()])


def recognised_less_float(own: BySeed) -> F64 | None:
    """Recognised less float's, -1, 0 or 1 [seeds, images]; None where a line does not tell it by image."""
    pairs = [(line.cell.recognised, line.facts.get("recognised_of_float")) for line in own.values()]
    if not all(right and of_float for right, of_float in pairs):
        return None
    return np.array([np.subtract(right, of_float, dtype=np.float64) for right, of_float in pairs])


def psnr_less(own: BySeed, other: BySeed) -> Interval | None:
    """PSNR less another method's, by seed and image; None with fewer than two seeds that both have."""
    both = [seed for seed in own if seed in other]
    if len(both) < 2:
        return None
    return interval_over_seeds(psnr_of({s: own[s] for s in both}) - psnr_of({s: other[s] for s in both}))


def row_of_seeds(spec: Spec, own: BySeed, first: BySeed) -> Row:
    """One row of a cell with two seeds or more."""
    psnr, shown = psnr_of(own), None if spec.method == FIRST else psnr_less(own, first)
    recognised = recognised_less_float(own)
    points = None if recognised is None else interval_over_seeds(100 * recognised)
    return {
        "method": spec.method,
        "bits": spec.bits,
        "seeds": ", ".join(map(str, own)),
        "PSNR, dB": interval_text(vars(interval_over_seeds(psnr))),
        "PSNR by seed": ", ".join(f"{mean:.2f}" for mean in psnr.mean(1)),
        f"PSNR less {FIRST}'s, dB": MISSING if shown is None else interval_text(vars(shown)),
        "recognised less float's, points": interval_text(None if points is None else vars(points), 1),
    }


def over_seeds(lines: Iterable[Line], terms: Terms) -> str:
    """A section for each model that has cells with several seeds; empty without any."""
    found, pieces = lines_by_seed(lines, terms), []
    for model in MODELS:
        specs = [s for s in all_specs() if s.model == model and not s.without and len(found.get(s.name, ())) > 1]
        rows = [row_of_seeds(s, found[s.name], found.get(Spec(model, FIRST, s.bits).name, {})) for s in specs]
        if rows:
            pieces.append(f"### {model}, several training seeds, intervals over seeds and images\n\n{markdown(rows)}")
    return "\n".join(pieces)
