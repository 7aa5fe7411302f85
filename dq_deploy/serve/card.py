"""What a server says of the model it serves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import FileProblemError
from dq_deploy.models import build_denoiser, macs_of
from dq_deploy.native.observe.attention import macs_in_codes
from dq_deploy.native.runner import NativeRunner
from dq_deploy.serve.same_bytes import SameBytes

if TYPE_CHECKING:
    from dq_deploy.pipelines.quantized import Quantized


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Classes of a model: the lowest and highest number, and their names where the pipeline knows them."""

    low: int
    high: int
    names: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What dq-verify found of the engine.

    Attributes:
        file: name of its report.
        sha256: of the report's bytes.
        exact: whether it proved the engine exact.
        integer_share: of all MACs whose kernels take two integer operands.
    """

    file: str
    sha256: str
    exact: bool
    integer_share: float


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a server says of the model it serves.

    Attributes:
        name: of the model, in requests.
        created: seconds since 1970 of the engine's file.
        takes: what a prompt is: `prompt`, `label` or `nothing`.
        labels: of a model with classes.
        pipeline: class of diffusers.
        scheduler: likewise.
        denoiser: likewise.
        width: of a picture in pixels where no size is asked for, and so height.
        height: likewise.
        channels: of a picture, 1 or 3; 0 where none is drawn without another picture.
        sizes_vary: whether another size may be asked for.
        steps: denoising steps where none are asked for.
        guidance: scale where none is asked for; None for a pipeline without guidance.
        negative_prompt: whether the pipeline takes one.
        draws: whether it makes pictures from nothing but the prompt or label.
        edits: whether it changes pictures.
        masks: whether it paints parts of pictures anew.
        previews: whether pictures on the way can be shown.
        no_previews: why not, or an empty text.
        method: by which the model was quantized; None where that is not known, and so the next two.
        weight_bits: usual bits of weights.
        activation_bits: usual bits of activations.
        integer_share: of all MACs that are in integer layers, as the engine's manifest says.
        engine: that runs, and its version.
        engine_version: with instruction set and threads.
        record_sha256: content hash of the record.
        proof: of the engine, where a report was given.
        same_bytes: whether an answer depends on what else is served.
        max_batch: samples of one call of the engine.
        queue: pictures that may wait.
    """

    name: str
    created: int
    takes: str
    labels: Labels | None
    pipeline: str
    scheduler: str | None
    denoiser: str
    width: int
    height: int
    channels: int = 0
    sizes_vary: bool
    steps: int
    guidance: float | None
    negative_prompt: bool
    draws: bool
    edits: bool
    masks: bool
    previews: bool
    no_previews: str
    method: str | None
    weight_bits: int | None
    activation_bits: int | None
    integer_share: float | None
    engine: str
    engine_version: str
    record_sha256: str | None
    proof: Proof | None
    same_bytes: SameBytes
    max_batch: int
    queue: int


def integer_share(quantized: Quantized) -> float | None:
    """Share of all MACs in layers that the engine has as integer ones, and of attention's where it runs on codes.

    A native engine says which those are; of any other its manifest does. None where that counts no MACs.
    """
    runner, manifest = quantized.runner, quantized.manifest
    if isinstance(runner, NativeRunner):
        assert manifest.family is not None  # which opening an engine demands
        blank = build_denoiser(manifest.family, manifest.model_config, device="meta")
        macs = macs_of(blank, quantized.call)
        forms = runner.layer_forms()
        layers = sum(count for name, count in macs.layers.items() if name in forms)
        return (layers + macs_in_codes(runner.executor)) / macs.of_all
    if manifest.macs is None:
        return None
    work = sum(manifest.macs.layers.get(layer.name, 0) for layer in manifest.layers if layer.integer)
    return work / manifest.macs.of_all


def bits_of(quantized: Quantized) -> tuple[str | None, int | None, int | None]:
    """Method and usual bits of weights and activations, as the record's provenance says."""
    options = quantized.provenance.get("options")
    method = quantized.provenance.get("method")
    found: list[int | None] = []
    for name in ("weight_bits", "activation_bits"):
        value = options.get(name) if isinstance(options, Mapping) else None
        found.append(value if isinstance(value, int) else None)
    return (method if isinstance(method, str) else None), found[0], found[1]


def read_proof(path: Path, record_sha256: str | None, engine: str) -> Proof:
    """The report that `dq-verify` wrote as JSON, held against the engine that is served.

    Args:
        path: of the report.
        record_sha256: of the record that is served.
        engine: that runs it, as `native`.

    Raises:
        FileProblemError: it is missing or damaged, or of another record or engine.
    """
    try:
        data = path.read_bytes()
        report: Any = json.loads(data)
        found = Proof(
            file=path.name,
            sha256=hashlib.sha256(data).hexdigest(),
            exact=report["exact"] is True,
            integer_share=float(report["integer_mac_share"]),
        )
        of, target = str(report["record_sha256"]), str(report["target"])
    except OSError as error:
        raise FileProblemError(f"the proof {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileProblemError(
            f"the proof {path} is no report that dq-verify wrote as JSON ({error}); let it write one"
        ) from error
    if of != record_sha256 or target != engine:
        raise FileProblemError(
            f"the proof {path} is of the record {of[:12]} on {target}, expected {str(record_sha256)[:12]} on {engine}, "
            "which are served; verify that engine"
        )
    return found
