"""What `dq-info` shows of a plan: its manifest, and what each layer became when it was built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console
from dq_deploy.errors import FileProblemError

if TYPE_CHECKING:
    from dq_deploy.manifest.values import PlanManifest, SizeRange


def summary_of_plan(path: Path, manifest: PlanManifest) -> dict[str, Any]:
    """Manifest of a plan with the share its layers had when it was built, as JSON values.

    Raises:
        FileProblemError: the manifest lacks what this release writes.
    """
    from dq_deploy.manifest.engine import stored_json

    layers, built, macs = manifest.layers, manifest.layers_built or (), manifest.macs
    if macs is None:
        raise FileProblemError(f"the manifest of {path} is incomplete (macs is missing); build the plan again")
    work = sum(row.macs for row in built if row.executed == "integer")
    return {
        "kind": "plan",
        "path": str(path),
        "file_mib": path.stat().st_size / 2**20,
        "layers_total": len(layers),
        "requested": dict(Counter("integer" if layer.integer else "float" for layer in layers)),
        "executed": dict(Counter(row.executed for row in built)),
        "integer_mac_share_when_built": work / macs.of_all if built else None,
        "im2col_bytes": sum(layer.im2col_bytes or 0 for layer in layers),
        "rows": [(row.name, row.requested, row.executed, row.why) for row in built],
        "manifest": stored_json(manifest),
    }


def show_plan(summary: dict[str, Any], manifest: PlanManifest) -> None:
    """Print what `summary_of_plan` found."""
    from rich.table import Table
    from rich.text import Text

    stored, share = summary["manifest"], summary["integer_mac_share_when_built"]
    capabilities = ", ".join(manifest.compute_capabilities)
    facts = {
        "runtime": f"{manifest.runtime} {manifest.runtime_version}, for compute capability {capabilities}"
        + (" and later" if manifest.portable else ""),
        "target": f"{manifest.target}, mode {manifest.mode}",
        "options": _pairs(stored.get("options")),
        "family": manifest.family,
        "made from record": manifest.record_sha256,
        "built from ONNX": manifest.onnx_sha256,
        "file": f"{summary['file_mib']:.3f} MiB",
        "shapes": "; ".join(_shapes(profile) for profile in manifest.profiles) or "fixed",
        "step buckets": len(manifest.timesteps),
        "layers requested": _pairs(summary["requested"]),
        "layers when built": _pairs(summary["executed"]) or "not attested; see dq-verify --engine",
        "integer share of MACs": "not attested" if share is None else f"{100 * share:.2f} %, as attested when built",
        "int8 patches": f"{summary['im2col_bytes']:,} bytes a sample",
        "build": _pairs(stored.get("build")),
        "versions": _pairs(stored.get("versions")),
    }
    table = Table(title=summary["path"], show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text("none" if value is None else str(value)))
    out = console()
    out.print(table)
    if not summary["rows"]:
        return
    layers = Table(title=f"{summary['layers_total']} layers")
    for name in ("layer", "requested", "became", "why"):
        layers.add_column(name, overflow="fold")
    for row in summary["rows"]:
        layers.add_row(*(Text(str(cell)) for cell in row))
    out.print(layers)


def _pairs(value: Mapping[str, object] | None) -> str:
    return ", ".join(f"{key} {item}" for key, item in (value or {}).items())


def _shapes(profile: Mapping[str, SizeRange]) -> str:
    return ", ".join(f"{name} {sizes.text()}" for name, sizes in sorted(profile.items()))
