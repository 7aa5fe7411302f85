"""What `dq-tune` prints: the rule of each shape it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dq_deploy.cli.frame import console


def show_rules(rules: Sequence[Mapping[str, object]], out: Path) -> None:
    """Print the rules that were written to `out`."""
    from rich.table import Table

    table = Table(title=f"{len(rules)} rules in {out}")
    for name in ("op", "m", "n", "k", "bits", "ms", "ms of default", "wrong", "failed"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for rule in rules:
        facts = [_first(rule.get(name)) for name in ("m", "n", "k", "bits")]
        times = [f"{rule[name]:.4f}" for name in ("milliseconds", "milliseconds_default")]
        table.add_row(str(rule["op"]), *facts, *times, str(rule["wrong"]), str(rule["failed"]))
    console().print(table)
    console().print(f"used where DQ_KERNELS_TILES={out.resolve()} is set", markup=False, soft_wrap=True)


def _first(span: object) -> str:
    """The least of a rule's range, which is what was measured."""
    return str(span[0]) if isinstance(span, (list, tuple)) else ""
