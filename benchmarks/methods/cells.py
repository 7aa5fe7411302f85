"""The cells of the methods table: which there are, in which order, and what was measured of each."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_deploy.comparison import Cell
from dq_deploy.methods import PARTS

METHODS = ("minmax", "gptq", "eda-dm", "dmq", "quest", "dilatequant")
PEERS = ("onnxruntime-qdq", "modelopt-smoothquant", "torchao-dynamic", "openvino-nncf")
BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A6": (4, 6), "W6A6": (6, 6), "W4A4": (4, 4)}
MODELS = ("digits", "emoji", "digits-dit")
REQUIRED = {"digits": ("W8A8", "W4A8", "W4A4"), "emoji": ("W4A4",), "digits-dit": ("W8A8", "W4A8")}
GROUPS = ("required", "ablations", "peers", "others", "all")


@dataclass(frozen=True)
class Spec:
    """One cell: a method or a peer at some bits on one model, with a part left out or whole.

    Attributes:
        model: of `MODELS`.
        method: of `METHODS` or `PEERS`.
        bits: of `BITS`.
        without: the part left out, or "".
        group: of `GROUPS`.
    """

    model: str
    method: str
    bits: str
    without: str = ""
    group: str = "others"

    @property
    def name(self) -> str:
        """As `digits/dmq-w4a4-no-reconstruction`."""
        part = f"-no-{self.without}" if self.without else ""
        return f"{self.model}/{self.method}-{self.bits.lower()}{part}"

    @property
    def is_peer(self) -> bool:
        """Whether another package makes it."""
        return self.method in PEERS


@dataclass(frozen=True)
class Terms:
    """What a cell is measured under, beside what it is.

    Attributes:
        preset: of dq-quantize.
        seed: of calibration and training.
        count: images.
        steps: of sampling and of calibration.
        labels: of the images.
    """

    preset: str = "fast"
    seed: int = 0
    count: int = 500
    steps: int = 20
    labels: str = "every class in turn"


def all_specs() -> list[Spec]:
    """Every cell once, the required first, then ablations, peers and the rest."""
    found = [Spec(m, method, b, group="required") for m in MODELS for b in REQUIRED[m] for method in METHODS]
    found += [Spec("digits", method, "W4A4", part, "ablations") for method in METHODS for part in PARTS[method]]
    found += [Spec("digits", peer, "W8A8", group="peers") for peer in PEERS]
    rest = [(m, b) for m in MODELS for b in BITS if b not in REQUIRED[m]]
    return found + [Spec(m, method, b) for m, b in rest for method in METHODS]


def chosen_specs(group: str | None, patterns: Sequence[str]) -> list[Spec]:
    """Cells of a group whose names match one of the patterns, if there are any.

    Raises:
        ValueError: a pattern matches no cell.
    """
    within = [spec for spec in all_specs() if group in (None, "all", spec.group)]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(spec.name, pattern) for spec in within):
            raise ValueError(f"no cell is named {pattern!r}, expected names as {within[0].name}; see --list")
    return [spec for spec in within if not patterns or any(fnmatch.fnmatch(spec.name, p) for p in patterns)]


@dataclass(frozen=True)
class Line:
    """One line of the results.

    Attributes:
        spec: the cell.
        terms: what it was measured under.
        cell: what was measured.
        facts: commit, date, machine; of each image, whether the float model's is recognised.
    """

    spec: Spec
    terms: Terms
    cell: Cell
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line; recognition of an image is 0 or 1."""
        cell = {**self.cell.as_json(), "recognised": [int(right) for right in self.cell.recognised]}
        return json.dumps({"spec": vars(self.spec), "terms": vars(self.terms), **self.facts, "cell": cell})

    @classmethod
    def of_json(cls, text: str) -> Line:
        """The line from its text."""
        value = json.loads(text)
        terms = Terms(**{"labels": "unknown", **value.pop("terms")})  # other labels give other images: no pairs
        spec, cell = Spec(**value.pop("spec")), Cell.from_json(value.pop("cell"))
        return cls(spec=spec, terms=terms, cell=cell, facts=value)


def read_lines(path: Path) -> list[Line]:
    """All lines of the results, none where there is no file."""
    if not path.is_file():
        return []
    return [Line.of_json(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]


def append_line(path: Path, line: Line) -> None:
    """Add one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line.to_json() + "\n")


def latest(lines: Iterable[Line], terms: Terms) -> dict[str, Line]:
    """The last line of each cell under these terms, by the cell's name; a later failure hides an earlier success."""
    return {line.spec.name: line for line in lines if line.terms == terms}
