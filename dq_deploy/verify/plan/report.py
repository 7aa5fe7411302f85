"""The report of a plan: requested against executed type of each layer, as values, as JSON and as a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.engine import stored_json
from dq_deploy.manifest.plan import read_plan_manifest
from dq_deploy.manifest.values import PlanManifest
from dq_deploy.record import content_sha256
from dq_deploy.verify.plan.attestation import PlanAttestation, attest_plan

if TYPE_CHECKING:
    from rich.console import Console

    from dq_deploy.record import Record


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Attestation of one plan.

    Attributes:
        engine: file name of the plan.
        manifest: of the plan.
        record_checked: whether a record was given, whose hash is then the plan's.
        attestation: what each layer became.
        comparison: why the plan was not run, or what running it showed.
        failures: what --exact refuses.
        seconds: time taken.
        im2col_bytes: int8 patches that convolutions as products write for one sample.
    """

    engine: str
    manifest: PlanManifest
    record_checked: bool
    attestation: PlanAttestation
    comparison: str
    failures: tuple[str, ...]
    seconds: float
    im2col_bytes: int

    @property
    def integer_mac_share(self) -> float:
        """Of all convolutions, linear layers and attention products; unknown is not integer."""
        return self.attestation.integer_mac_share

    @property
    def float_layers(self) -> tuple[dict[str, Any], ...]:
        """Layers that are not integer, with the reason; those that were never quantized too."""
        rows = [
            {"name": layer.name, "macs": layer.macs, "reason": f"{layer.executed}: {layer.why}"}
            for layer in self.attestation.layers
            if layer.executed != "integer"
        ]
        known = {layer.name for layer in self.attestation.layers}
        rows += [
            {"name": name, "macs": count, "reason": "not quantized"}
            for name, count in ({} if self.manifest.macs is None else self.manifest.macs.layers).items()
            if name not in known
        ]
        return tuple(rows)

    @property
    def macs(self) -> dict[str, int]:
        """`of_all`, `of_quantizable`, `attention`, `integer`, `unknown`."""
        return self.attestation.macs

    def to_json(self) -> dict[str, Any]:
        """JSON values; the attestation's names stand at the top level."""
        kept = ("target", "mode", "options", "record_sha256", "onnx_sha256", "plan_sha256", "runtime_version", "build",
                "profiles", "float_precision")  # fmt: skip
        stored = stored_json(self.manifest)
        return {
            "engine": self.engine,
            "exact": None,
            **{key: stored.get(key) for key in kept},
            **self.attestation.to_json(),
            "float_layers": list(self.float_layers),
            "record_checked": self.record_checked,
            "comparison": self.comparison,
            "im2col_bytes": self.im2col_bytes,
            "failures": list(self.failures),
            "seconds": self.seconds,
        }


def verify_plan(
    engine: str | Path,
    *,
    record: Record | None = None,
    compare: bool = False,
    progress: Callable[[str], None] | None = None,
) -> PlanReport:
    """Say what a plan's layers became; with `compare`, say also that they were not compared, or run it.

    Args:
        engine: plan with its manifest beside it.
        record: what it should have been made from.
        compare: run the plan where a driver is found.
        progress: called with a line for each stage.

    Raises:
        FileProblemError: missing or foreign files, or a plan that was not made from this record.
    """
    started = time.perf_counter()
    path = Path(engine)
    say = progress or (lambda line: None)
    manifest = read_plan_manifest(path)
    if record is not None:
        expected = content_sha256(record)
        if manifest.record_sha256 != expected:
            raise FileProblemError(
                f"{path} was made from another record: {str(manifest.record_sha256)[:12]}, expected "
                f"{expected[:12]}; build it again with dq-build"
            )
    say("reading the plan")
    attestation = attest_plan(path, manifest)
    comparison = ""
    failures: tuple[str, ...] = ()
    if compare:
        from dq_deploy.verify.plan.run import run_of_plan

        say("running the plan")
        comparison = run_of_plan(path, record)
        failures = (comparison,)
    return PlanReport(
        engine=path.name,
        manifest=manifest,
        record_checked=record is not None,
        attestation=attestation,
        comparison=comparison,
        failures=failures,
        seconds=time.perf_counter() - started,
        im2col_bytes=sum(layer.im2col_bytes or 0 for layer in manifest.layers),
    )


def summary_rows(report: PlanReport) -> list[tuple[str, str]]:
    """The summary in words, for the terminal and the HTML page."""
    told, manifest = report.attestation, report.manifest
    options = {} if manifest.options is None else manifest.options.to_json()
    asked = Counter(layer.requested for layer in told.layers)
    became = Counter(layer.executed for layer in told.layers)
    rows = [
        ("plan", f"{told.runtime} {manifest.runtime_version}, for {', '.join(told.compute_capabilities)}"),
        ("made from record", str(manifest.record_sha256) + (", as given" if report.record_checked else "")),
        ("options", ", ".join(f"{key} {value}" for key, value in sorted(options.items()))),
        ("layers requested", _counts(asked)),
        ("layers executed", _counts(became)),
        (
            "integer MACs",
            f"{told.integer_mac_share:.2%} of all, {told.integer_mac_share_of_quantizable:.2%} of quantizable"
            + (f"; {told.macs['unknown'] / max(1, told.macs['of_all']):.2%} unknown" if told.macs["unknown"] else ""),
        ),
    ]
    if told.kernels:
        roles = ("quantize", "dequantize", "unpack", "move_codes", "float")
        rest = ", ".join(f"{told.kernels[role]} {role.replace('_', ' ')}" for role in roles if told.kernels[role])
        products = f"{told.kernels['products']}, {told.kernels['integer_products']} of them integer"
        rows += [("products", products), ("other kernels", rest), ("standing alone", unfused_text(told))]
    if report.im2col_bytes:
        rows.append(("int8 patches", f"{report.im2col_bytes:,} bytes a sample are written and read for im2col"))
    if report.comparison:
        rows.append(("outputs", report.comparison))
    rows.append(("read in", f"{report.seconds:.1f} s, without running it"))
    return rows


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counter.items())) or "none"


def unfused_text(told: PlanAttestation) -> str:
    """What stands alone, in a line."""
    roles = Counter(str(row["role"]) for row in told.unfused)
    text = ", ".join(f"{count} {role}" for role, count in roles.most_common())
    return f"{text} kernels hold no operation of the model" if text else "nothing: each kernel has model operations"


_STYLES = {"integer": "green", "float": "magenta", "unknown": "yellow"}


def print_plan_report(report: PlanReport, console: Console) -> None:
    """Print the layers, then the summary."""
    from rich.table import Table
    from rich.text import Text

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
            Text(layer.executed, style=_STYLES[layer.executed]),
            ", ".join(layer.operands) or "-",
            f"{100 * layer.macs / max(1, report.macs['of_all']):.1f}",
            Text("" if report.attestation.problem else layer.why),
        )
    console.print(table)
    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in summary_rows(report):
        facts.add_row(name, Text(value))
    console.print(facts)
    for row in report.attestation.unfused[:10]:
        first = row["nodes"][0] if row["nodes"] else ""
        console.print(Text(f"alone: {row['role']} {row['kernel']} at {first}"), highlight=False)
    if len(report.attestation.unfused) > 10:
        console.print(f"alone: {len(report.attestation.unfused) - 10} more, see --json", highlight=False)
    if report.attestation.problem:
        console.print(Text(f"unknown: {report.attestation.problem}", style="yellow"), highlight=False)
