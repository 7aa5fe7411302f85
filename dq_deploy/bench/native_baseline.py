"""What the native engine is timed against, and how it runs a record on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.record import load_record

if TYPE_CHECKING:
    from dq_deploy.record import Record

FLOAT_ENGINE = "onnxruntime"
"""Runs the float graph."""


def of_native_engine(path: Path, manifest: Mapping[str, Any], record: Record | None) -> tuple[dict[str, Any], Record]:
    """What `float_graph` is given for a record: the weights are at hand.

    Args:
        path: the record that runs.
        manifest: of its runner.
        record: the same, where it was read already.
    """
    return {**manifest, "target": FLOAT_ENGINE}, record or load_record(path)


def native_facts(runner: Any) -> dict[str, Any]:
    """How an opened native engine runs its record: instruction set, threads, layer parts by kernel and form."""
    forms = [form for parts in runner.layer_forms().values() for form in parts]
    counts = Counter(f"{form.kernel}: {form.form}" for form in forms)
    context = runner.executor.context
    return {"isa": context.isa, "threads": context.threads, "kernels": dict(counts.most_common())}
