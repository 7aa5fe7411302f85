"""How much of an engine's work runs in integers, from what the engine says of itself and its manifest alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from dq_deploy.artifacts import with_files_beside
from dq_deploy.errors import FileProblemError
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.plan import is_plan, read_plan_manifest
from dq_deploy.open_engine import NATIVE_SUFFIXES, checked_engine, open_engine
from dq_deploy.verify.onnx.instrument import ShippedGraph
from dq_deploy.verify.onnx.kernels import read_kernels
from dq_deploy.verify.plan.attestation import attest_plan


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """Shares of the float model's MACs whose kernels take two integer operands.

    Attributes:
        integer_mac_share: of all convolutions, linear layers and attention products.
        integer_mac_share_of_quantizable: of convolutions and linear layers.
        float_layers: layers of the manifest whose kernel is not integer, or not known to be.
    """

    integer_mac_share: float
    integer_mac_share_of_quantizable: float
    float_layers: tuple[str, ...]


def attest(
    engine_path: str | Path, *, device: str | None = None, attention: str | None = None, hash_check: bool = True
) -> Attestation:
    """Read which kernels an engine really runs; a plan is read and not opened, which needs no GPU.

    Args:
        engine_path: exported ONNX file, or a plan, with its manifest; or a record, by its layers in the native engine.
        device: of the native engine, as of `open_engine`.
        attention: likewise; products on codes count as integer.
        hash_check: likewise.

    Returns:
        The shares.

    Raises:
        FileProblemError: the engine or its manifest is missing or broken.
    """
    path = with_files_beside(checked_engine(engine_path))
    if path.suffix in NATIVE_SUFFIXES:
        return _of_record(path, device, attention, hash_check)
    if is_plan(path):
        plan = attest_plan(path, read_plan_manifest(path, check_hash=False))
        return Attestation(
            integer_mac_share=plan.integer_mac_share,
            integer_mac_share_of_quantizable=plan.integer_mac_share_of_quantizable,
            float_layers=plan.not_integer,
        )
    manifest = read_manifest(path)
    with tempfile.TemporaryDirectory(prefix="dq-attest-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        with open_engine(path, optimized_model_path=optimized, hash_check=hash_check):
            shipped = ShippedGraph(path, Path(folder), engine=manifest.target, threads=None)
            graph = read_kernels(shipped, optimized)
    macs, integer, float_layers = manifest.macs, 0, []
    if macs is None:
        raise FileProblemError(f"manifest inside {path} is incomplete: macs is missing; export the file again")
    for layer in manifest.layers:
        if layer.parts and all(graph.is_integer(part) for part in layer.parts):
            integer += macs.layers[layer.name]
        else:
            float_layers.append(layer.name)
    return Attestation(
        integer_mac_share=integer / macs.of_all,
        integer_mac_share_of_quantizable=integer / macs.of_quantizable,
        float_layers=tuple(float_layers),
    )


def _of_record(path: Path, device: str | None, attention: str | None, hash_check: bool) -> Attestation:
    """Of the native engine: every integer layer it runs is integer, in a kernel or in numpy."""
    from dq_deploy.models import build_denoiser, call_of_record, macs_of
    from dq_deploy.native.file.opening import record_of_engine
    from dq_deploy.native.observe.attention import macs_in_codes
    from dq_deploy.native.runner import NativeRunner

    record = record_of_engine(path, hash_check=hash_check)
    blank = build_denoiser(record.family, record.model_config, device="meta")
    macs = macs_of(blank, call_of_record(record))  # loads torch, so that tracing needs no other process
    with open_engine(path, device=device, attention=attention, hash_check=False) as runner:  # checked above
        assert runner.layer_runs is not None
        forms = runner.layer_runs.layer_forms()
        codes = macs_in_codes(runner.executor) if isinstance(runner, NativeRunner) else 0
    work = sum(count for name, count in macs.layers.items() if name in forms)
    return Attestation(
        integer_mac_share=(work + codes) / macs.of_all,
        integer_mac_share_of_quantizable=work / macs.of_quantizable,
        float_layers=tuple(name for name in macs.layers if name not in forms),
    )
