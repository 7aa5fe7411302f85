"""What `dq-build` prints: what the builder is doing, and what each layer of the plan became."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console, stderr_console

if TYPE_CHECKING:
    from dq_deploy.engines.tensorrt.build.messages import BuildProgress
    from dq_deploy.manifest.values import PlanManifest
    from dq_deploy.verify.plan.attestation import PlanAttestation

_LINE_EVERY_S = 2.0


@contextlib.contextmanager
def build_progress() -> Iterator[Callable[[BuildProgress], None]]:
    """What the builder is doing: one changing line on a terminal, a line now and then elsewhere, on stderr."""
    if not sys.stderr.isatty():
        told = [-_LINE_EVERY_S]

        def say(state: BuildProgress) -> None:
            if state.seconds - told[0] >= _LINE_EVERY_S:
                told[0] = state.seconds
                print(_state_text(state), file=sys.stderr, flush=True)

        yield say
        return
    with stderr_console().status("build") as status:
        yield lambda state: status.update(_state_text(state))


def _state_text(state: BuildProgress) -> str:
    steps = f" {state.done}/{state.total}" if state.total else ""
    memory = "" if state.peak_mib is None else f", {state.peak_mib:.0f} MiB"
    return f"build: {state.phase}{steps}, {state.seconds:.1f} s{memory}"


def say_exported(seconds: float) -> None:
    """A line on stderr when the record's ONNX file is there."""
    print(f"exported in {seconds:.1f} s", file=sys.stderr, flush=True)


def summary_of_build(
    manifest: PlanManifest, attestation: PlanAttestation, out: Path, *, seconds: float
) -> dict[str, Any]:
    """What was built, as JSON values."""
    stored, layers, built = manifest.to_json(), manifest.layers, manifest.layers_built or ()
    return {
        "plan": str(out),
        "runtime": manifest.runtime,
        "runtime_version": manifest.runtime_version,
        "compute_capabilities": list(manifest.compute_capabilities),
        "portable": manifest.portable,
        "record_sha256": manifest.record_sha256,
        "onnx_sha256": manifest.onnx_sha256,
        "plan_sha256": manifest.plan_sha256,
        "profiles": stored["profiles"],
        "options": dict(sorted(stored["options"].items())),
        "build": stored["build"],
        "plan_mib": stored["build"]["plan_bytes"] / 2**20,
        "seconds": seconds,
        "layers": len(built),
        "requested": dict(sorted(Counter("integer" if layer.integer else "float" for layer in layers).items())),
        "executed": dict(sorted(Counter(row.executed for row in built).items())),
        "integer_mac_share": attestation.integer_mac_share,
        "im2col_mib_per_sample": sum(layer.im2col_bytes or 0 for layer in layers) / 2**20,
        "not_integer": {row.name: f"{row.executed}: {row.why}" for row in built if row.executed != "integer"},
    }


def show_build(summary: dict[str, Any], manifest: PlanManifest) -> None:
    """Print what `summary_of_build` found."""
    from rich.table import Table

    build_facts = summary["build"]
    peak = build_facts["peak_mib"]
    table = Table(title=f"{summary['plan']} by {summary['runtime']} {summary['runtime_version']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("plan", f"{summary['plan_mib']:.2f} MiB")
    table.add_row("of it source of kernels", f"{build_facts['text_bytes'] / 2**20:.2f} MiB")
    table.add_row("built in", f"{build_facts['seconds']:.1f} s")
    table.add_row("builder's peak memory", "unknown" if peak is None else f"{peak:.0f} MiB")
    later = " and later" if summary["portable"] else ""
    table.add_row("compute capabilities", ", ".join(summary["compute_capabilities"]) + later)
    for profile in manifest.profiles:
        for name, sizes in profile.items():
            table.add_row(f"shapes of {name}", sizes.text())
    for word in ("requested", "executed"):
        counts = ", ".join(f"{count} {kind}" for kind, count in summary[word].items())
        table.add_row(f"layers {word}", counts)
    table.add_row("integer share of all MACs in the plan", f"{100 * summary['integer_mac_share']:.2f} %")
    table.add_row("int8 patches (im2col)", f"{summary['im2col_mib_per_sample']:.2f} MiB a sample")
    console().print(table)
    for name, reason in summary["not_integer"].items():
        print(f"not integer: {name}: {reason}")
    print(f"wrote {summary['plan']}; see each layer with: dq-verify --engine {summary['plan']}")
