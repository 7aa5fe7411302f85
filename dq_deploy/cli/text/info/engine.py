"""What `dq-info` shows of an engine file: its manifest, and the form of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console
from dq_deploy.cli.text.info.facts import facts_table, short_list, value_text
from dq_deploy.errors import FileProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dq_deploy.manifest.values import EngineManifest, TensorEntry


def summary_of_engine(path: Path, manifest: EngineManifest) -> dict[str, Any]:
    """Manifest of an exported ONNX file with the shares its layers declare, as JSON values.

    Raises:
        FileProblemError: the manifest lacks what this release writes.
    """
    from dq_deploy.graph.external_data import bytes_with_data
    from dq_deploy.manifest.engine import stored_json

    macs = manifest.macs
    if macs is None or manifest.record_sha256 is None:
        raise _incomplete(path, "macs" if macs is None else "record_sha256")
    for index, layer in enumerate(manifest.layers):
        absent = [name for name in ("form", "kind", "reason") if getattr(layer, name) is None]
        if absent:
            raise _incomplete(path, f"layers[{index}].{absent[0]}")
        if layer.integer and layer.name not in macs.layers:
            raise _incomplete(path, f"macs.layers.{layer.name}")
    work = sum(macs.layers[layer.name] for layer in manifest.layers if layer.integer)
    return {
        "kind": "engine",
        "path": str(path),
        "file_mib": bytes_with_data(path) / 2**20,
        "integer_layers": sum(layer.integer for layer in manifest.layers),
        "layers_total": len(manifest.layers),
        "declared_integer_mac_share": work / macs.of_all,
        "declared_integer_mac_share_of_quantizable": work / macs.of_quantizable,
        "manifest": stored_json(manifest),
    }


def _incomplete(path: Path, entry: str) -> FileProblemError:
    return FileProblemError(f"manifest inside {path} is incomplete ({entry} is missing); export the file again")


def show_engine(summary: dict[str, Any], manifest: EngineManifest) -> None:
    """Print what `summary_of_engine` found."""
    from rich.table import Table
    from rich.text import Text

    share = 100 * summary["declared_integer_mac_share"]
    versions = None if manifest.versions is None else dict(sorted(manifest.versions.items()))
    facts = {
        "target": f"{manifest.target}, mode {manifest.mode}",
        "family": manifest.family,
        "made from record": manifest.record_sha256,
        "file": f"{summary['file_mib']:.3f} MiB",
        "inputs": _tensors(manifest.inputs),
        "outputs": _tensors(manifest.outputs),
        "step buckets": len(manifest.timesteps),
        "timesteps": short_list(manifest.timesteps),
        "batch": "one step bucket in a batch" if manifest.single_step_batch else "steps may be mixed",
        "integer layers": f"{summary['integer_layers']} of {summary['layers_total']}, as declared",
        "integer share of MACs": f"{share:.2f} %, as declared; dq-verify measures it",
        "versions": value_text(versions),
    }
    out = console()
    out.print(facts_table(summary["path"], facts), markup=False)
    table = Table(title=f"{summary['layers_total']} layers")
    for name in ("layer", "kind", "form", "reason"):
        table.add_column(name, overflow="fold")
    for layer in manifest.layers:
        table.add_row(*(Text(str(cell)) for cell in (layer.name, layer.kind, layer.form, layer.reason)))
    out.print(table)


def _tensors(tensors: Sequence[TensorEntry]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
