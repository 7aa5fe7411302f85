"""What a manifest must look like: one that was edited by hand or cut off is refused where it is read, in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A value without parts: what it is called, and how it is known."""

    words: str
    known: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _count(value: Any) -> bool:
    return _whole(value) and value >= 0


def _size(value: Any) -> bool:
    return _count(value) and value > 0


def _capability(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{1,2}\.\d", value) is not None


TEXT = Kind("text", lambda value: isinstance(value, str))
TEXT_OR_NONE = Kind("text or null", lambda value: value is None or isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a finite number", _number)
COUNT = Kind("a whole number from 0", _count)
COUNT_OR_NONE = Kind("a whole number from 0, or null", lambda value: value is None or _count(value))
SIZE = Kind("a size of at least 1", _size)
DIMENSION = Kind(
    "a size of at least 1 or a letter", lambda value: _size(value) or (isinstance(value, str) and value != "")
)
CAPABILITY = Kind("a compute capability such as 8.9", _capability)
WHOLE_OR_NONE = Kind("a whole number or null", lambda value: value is None or _whole(value))
ENTRIES = Kind("an object", lambda value: isinstance(value, dict))
ENTRIES_OR_NONE = Kind("an object or null", lambda value: value is None or isinstance(value, dict))

Expected = Kind | list[Any] | dict[Any, Any]
"""A kind, a list of one element for lists of it, or an object: `name?` may be missing, `...` stands for any name."""

_TENSORS = [{"name": TEXT, "dtype": TEXT, "shape": [DIMENSION]}]
_PART = {
    **{
        f"{name}?": TEXT_OR_NONE for name in ("node", "input", "codes", "accumulator", "rows", "weight", "offset_table")
    },
    "offset?": WHOLE_OR_NONE,
    "offset_shift?": WHOLE_OR_NONE,
}
_LAYER = {
    "name": TEXT,
    "integer": FLAG,
    "kind?": TEXT,
    "form?": TEXT,
    "reason?": TEXT,
    "im2col_bytes?": COUNT,
    "parts?": [_PART],
}

ENGINE: dict[Any, Expected] = {
    "target": TEXT,
    "inputs": _TENSORS,
    "layers": [_LAYER],
    "outputs": _TENSORS,
    "mode": TEXT,
    "family?": TEXT,
    "record_sha256?": TEXT,
    "data_sha256?": TEXT_OR_NONE,
    "content_sha256?": TEXT,
    "macs?": {"of_all": SIZE, "of_quantizable": SIZE, "attention": COUNT, "layers": {...: COUNT}},
    "timesteps": [NUMBER],
    "step_edges": [NUMBER],
    "single_step_batch?": FLAG,
    "options?": ENTRIES,
    "model_config": ENTRIES,
    "scheduler_config": ENTRIES_OR_NONE,
    "versions?": ENTRIES,
    "notes?": [TEXT],
    "float_precision?": [ENTRIES],
}
"""The manifest of an exported ONNX file."""

PLAN: dict[Any, Expected] = {
    **ENGINE,
    "plan_sha256": TEXT,
    "onnx_sha256": TEXT,
    "runtime": TEXT,
    "runtime_version": TEXT,
    "compute_capabilities": [CAPABILITY],
    "portable?": FLAG,
    "profiles": [{...: {"min": [SIZE], "opt": [SIZE], "max": [SIZE]}}],
    "build?": {"plan_bytes?": COUNT, "workspace_mib?": COUNT_OR_NONE},
    "layers_built?": [{"name": TEXT, "requested": TEXT, "executed": TEXT, "why": TEXT, "macs": COUNT}],
}
"""The manifest of a plan: the ONNX file's and what the build added."""


def flaw_of(value: Any, expected: Expected, where: str = "") -> str:
    """The first thing that is not as expected, as `layers[0].name is 5, expected text`; empty where all is."""
    if isinstance(expected, Kind):
        return "" if expected.known(value) else f"{where} is {_shown(value)}, expected {expected.words}"
    if isinstance(expected, list):
        if not isinstance(value, list):
            return f"{where} is {_shown(value)}, expected a list"
        pairs = ((item, expected[0], f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, (flaw_of(*pair) for pair in pairs)), "")
    if not isinstance(value, dict):
        return f"{where} is {_shown(value)}, expected an object"
    return _flaw_of_entries(value, expected, f"{where}." if where else "")


def _flaw_of_entries(value: Mapping[str, Any], expected: Mapping[Any, Expected], prefix: str) -> str:
    for key, kind in expected.items():
        names = list(value) if key is ... else [str(key).removesuffix("?")]
        for name in names:
            if name in value:
                flaw = flaw_of(value[name], kind, f"{prefix}{name}")
            else:
                flaw = "" if str(key).endswith("?") else f"{prefix}{name} is missing"
            if flaw:
                return flaw
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
