"""What the native engine is timed against, and how it runs a record on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.bench.worker import WorkerSettings
from dq_deploy.errors import OptionError
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.native.file.opening import record_of_engine

if TYPE_CHECKING:
    from dq_deploy.bench.options import BenchOptions
    from dq_deploy.engines.capabilities import LayerRuns
    from dq_deploy.record import Record

FLOAT_ENGINE = "onnxruntime"
"""Runs the float graph."""


def of_native_engine(path: Path, manifest: EngineManifest, record: Record | None) -> tuple[EngineManifest, Record]:
    """What `float_graph` is given for a record: the weights are at hand.

    Args:
        path: the record that runs.
        manifest: of its runner.
        record: the same, where it was read already.
    """
    return replace(manifest, target=FLOAT_ENGINE), record or record_of_engine(path, hash_check=False)


def native_facts(runner: LayerRuns, *, baseline: bool = False) -> dict[str, Any]:
    """How an opened native engine runs its record: in words, instruction set, threads, layer parts by kernel.

    Args:
        runner: the engine.
        baseline: whether it is going to be timed against its float graph.

    Raises:
        OptionError: it is, and runs on a GPU: the float graph would run on the CPU.
    """
    if baseline and runner.runs_on.isa is None:
        raise OptionError(
            "`baseline` of the native engine is the float graph on ONNX Runtime, which would run on the CPU; "
            "leave it out, or give `device` as cpu. benchmarks/unets/gpu.py times torch.compile on the GPU"
        )
    from dq_deploy.native.observe.attention import attention_counts
    from dq_deploy.native.runner import NativeRunner

    forms = [form for parts in runner.layer_forms().values() for form in parts]
    counts = Counter(f"{form.kernel}: {form.form}" for form in forms)
    on = runner.runs_on
    ran = attention_counts(runner.executor) if isinstance(runner, NativeRunner) else None
    words = f"instruction set {on.isa}, {on.threads} threads" if on.isa else f"{on.device}, {on.float_type}"
    return {
        "runs_on": words,
        "isa": on.isa,
        "threads": on.threads,
        "attention": on.attention,
        "attention_form": on.attention_form,
        "attention_operations": ran,
        "kernels": dict(counts.most_common()),
    }


def worker_settings(files: Mapping[str, Path], kind: str, options: BenchOptions) -> dict[str, WorkerSettings]:
    """Of each worker; the native engine's baseline is a graph, which another engine runs."""
    engines = {"engine": kind, "baseline": FLOAT_ENGINE if kind == "native" else kind}
    own = {"engine": (options.isa, options.device, options.attention), "baseline": (None, None, None)}
    return {
        name: WorkerSettings(
            path=str(file),
            engine=engines[name],
            threads=options.threads,
            finite_check=options.finite_check,
            isa=own[name][0],
            device=own[name][1],
            attention=own[name][2],
        )
        for name, file in files.items()
    }
