"""What `dq-verify` prints: every layer, then the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dq_deploy.verify.plan.report import PlanReport
    from dq_deploy.verify.report.values import Report

_STYLES = {"exact": "green", "differs": "bold red", "unsafe": "bold red", "unproven": "yellow", "float": "magenta"}
_PLAN_STYLES = {"integer": "green", "float": "magenta", "unknown": "yellow"}

MOST_SHOWN = 10
"""Failures, and kernels that stand alone, that are printed one by one."""


def print_report(report: Report, console: Console) -> None:
    """Print the layers, then the summary."""
    from rich.table import Table
    from rich.text import Text

    from dq_deploy.verify.report.words import number_text, short_kernel, summary_rows

    table = Table(title=f"{report.engine}: every layer against the numerics", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("bits")
    table.add_column("kernel that runs", overflow="fold")
    for column in ("codes", "max diff", "accumulators", "max diff", "MACs %"):
        table.add_column(column, justify="right")
    table.add_column("status")
    for layer in report.layers:
        table.add_row(
            layer.name,
            f"W{layer.weight_bits}A{layer.activation_bits}",
            short_kernel(layer),
            number_text(layer.codes_compared),
            number_text(layer.max_code_difference),
            number_text(layer.accumulators_compared),
            number_text(layer.max_accumulator_difference),
            f"{100 * layer.macs / report.macs.of_all:.1f}",
            Text(layer.status, style=_STYLES[layer.status]),
        )
    console.print(table)
    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in summary_rows(report):
        facts.add_row(name, value)
    console.print(facts)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for failure in report.failures[:MOST_SHOWN]:
        console.print(Text(f"not exact: {failure}", style="red"))
    if len(report.failures) > MOST_SHOWN:
        console.print(Text(f"not exact: {len(report.failures) - MOST_SHOWN} more, see --json", style="red"))


def print_plan_report(report: PlanReport, console: Console) -> None:
    """Print the layers, then the summary."""
    from rich.table import Table
    from rich.text import Text

    from dq_deploy.verify.plan.words import summary_rows

    table = Table(title=f"{report.engine}: what each layer became", title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("requested", "executed", "operands"):
        table.add_column(column)
    table.add_column("MACs %", justify="right")
    table.add_column("why", overflow="fold")
    for layer in report.attestation.layers:
        table.add_row(
            Text(layer.name),
            layer.requested,
            Text(layer.executed, style=_PLAN_STYLES[layer.executed]),
            ", ".join(layer.operands) or "-",
            f"{100 * layer.macs / max(1, report.macs.of_all):.1f}",
            Text("" if report.attestation.problem else layer.why),
        )
    console.print(table)
    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in summary_rows(report):
        facts.add_row(name, Text(value))
    console.print(facts)
    for row in report.attestation.unfused[:MOST_SHOWN]:
        first = row.nodes[0] if row.nodes else ""
        console.print(Text(f"alone: {row.role} {row.kernel} at {first}"), highlight=False)
    if len(report.attestation.unfused) > MOST_SHOWN:
        console.print(f"alone: {len(report.attestation.unfused) - MOST_SHOWN} more, see --json", highlight=False)
    if report.attestation.problem:
        console.print(Text(f"unknown: {report.attestation.problem}", style="yellow"), highlight=False)
