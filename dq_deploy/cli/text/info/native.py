"""What `dq-info --native` shows of a record: how the native engine would run it on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dq_deploy.cli.frame import console


def summary_of_native(path: Path, *, hash_check: bool = True) -> dict[str, Any]:
    """Instruction set, kernels, memory, what attention may run in and what numpy does as JSON values.

    The record is opened, and run twice.

    Raises:
        FileProblemError: no record.
        MissingDependencyError: the CPU kernels were not built.
        ModelError: an operation the native engine does not know.
    """
    from dq_kernels.cpu.library import attention_form

    from dq_deploy.bench.native_baseline import native_facts
    from dq_deploy.engines.options import ATTENTION
    from dq_deploy.open_engine import open_engine

    with open_engine(path, engine="native", device="cpu", hash_check=hash_check) as runner:
        layers = runner.layer_runs
        assert layers is not None
        memory, forms = layers.memory(), layers.layer_forms()
        isa = layers.runs_on.isa
        assert memory is not None
        assert isa is not None  # on a CPU
        return {
            **native_facts(layers),
            "attention_forms": {kind: attention_form(isa, kind) for kind in ATTENTION},
            "packed_weights_mib": memory.packed_weights_mib,
            "batch_1_memory_mib": memory.batch_1_mib,
            "numpy_operations": [asdict(operation) for operation in layers.numpy_operations()],
            "in_numpy": {name: p.reason for name, parts in forms.items() for p in parts if p.reason},
        }


def show_native(summary: dict[str, Any]) -> None:
    """Print what `summary_of_native` found."""
    from rich.table import Table

    table = Table(title="in the native engine, on this machine", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("runs on", summary["runs_on"])
    table.add_row("packed weights", f"{summary['packed_weights_mib']:.3f} MiB")
    table.add_row("values at batch 1", f"{summary['batch_1_memory_mib']:.3f} MiB")
    for kernel, count in summary["kernels"].items():
        table.add_row(f"{count} layer parts", kernel)
    attentions = summary["attention_operations"][1]
    if attentions:
        forms = "; ".join(f"--attention {kind}: {form}" for kind, form in summary["attention_forms"].items())
        table.add_row(f"{attentions} attentions", f"{forms}. float32 is the default")
    for operation in summary["numpy_operations"]:
        share = f"{operation['share']:.1%} of a step's time"
        table.add_row(f"{operation['count']} in numpy", f"{operation['name']}: {share}")
    for name, reason in summary["in_numpy"].items():
        table.add_row(f"in numpy: {name}", reason)
    console().print(table)
