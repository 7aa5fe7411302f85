"""Any ONNX file that maps images to one vector each, as a feature extractor or as a classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.numerics.arrays import F32
from dq_deploy.quality.features import FeatureExtractor, Outputs, as_rgb, checked_images, resized

Labels = Callable[[NDArray[np.floating]], NDArray[np.int64]]

BATCH = 50
WANTED = "one float32 input [N, C, H, W] with C 1 or 3, and one output [N, D]"


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A session with the sizes its input fixes; None where an axis is free."""

    path: Path
    session: Any
    output: str
    dimension: int | None
    batch: int | None
    channels: int | None
    height: int | None
    width: int | None

    def _fitted(self, images: F32) -> F32:
        x = as_rgb(images) if self.channels == 3 else images
        if self.channels not in (None, x.shape[1]):
            raise InputError(f"{self.path} takes {self.channels} channels, the images have {x.shape[1]}")
        return np.ascontiguousarray(resized(x, self.height or x.shape[2], self.width or x.shape[3]).numpy())

    def __call__(self, images: F32) -> F32:
        x = self._fitted(images)
        step = self.batch or len(x)
        name, found = self.session.get_inputs()[0].name, []
        for i in range(0, len(x), step):
            part = x[i : i + step]
            whole = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            try:
                found.append(self.session.run([self.output], {name: whole})[0][: len(part)])
            except Exception as error:  # onnxruntime's errors have no common class
                raise InputError(f"{self.path} failed on images {whole.shape}: {_line(error)}") from error
        return np.concatenate(found)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _fixed(axis: object) -> int | None:
    return axis if isinstance(axis, int) else None


def _load(path: Path) -> _Network:
    import onnxruntime

    if not path.is_file():
        raise FileProblemError(f"{path} does not exist, expected an ONNX file with {WANTED}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise FileProblemError(f"cannot load {path}: {_line(error)}; expected an ONNX file with {WANTED}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    vectors = [o for o in outputs if o.type == "tensor(float)" and len(o.shape) == 2]
    fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4 and len(vectors) == 1
    if not fits or _fixed(inputs[0].shape[1]) not in (None, 1, 3):
        got = ", ".join(f"{x.name} {x.type} {x.shape}" for x in (*inputs, *outputs))
        raise FileProblemError(f"{path} has {got:.300}; expected {WANTED}")
    batch, channels, height, width = (_fixed(axis) for axis in inputs[0].shape)
    return _Network(
        path=path,
        session=session,
        output=vectors[0].name,
        dimension=_fixed(vectors[0].shape[1]),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
    )


def load_onnx_extractor(path: Path) -> FeatureExtractor:
    """An extractor without maps from an ONNX file, values given as they are, in [-1, 1].

    Grey images are repeated where the file fixes three channels, and resized where it fixes a size.

    Raises:
        FileProblemError: the file is missing, broken, or has other inputs and outputs.
    """
    network = _load(path)

    def run(images: F32) -> Outputs:
        return network(images), ()

    return FeatureExtractor(
        name=f"onnx-{path.stem}",
        frechet_name=f"FD-onnx-{path.stem}",
        kernel_name=f"KD-onnx-{path.stem}",
        dimension=network.dimension,
        has_maps=False,
        network=run,
    )


def load_onnx_classifier(path: Path) -> Labels:
    """A classifier from an ONNX file with logits [N, classes]: images in [-1, 1] to the index of the largest.

    Raises:
        FileProblemError: the file is missing, broken, or has other inputs and outputs.
    """
    network = _load(path)

    def recognise(images: NDArray[np.floating]) -> NDArray[np.int64]:
        x = checked_images(images)
        logits = np.concatenate([network(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
        if not np.isfinite(logits).all():
            raise InputError(f"{path} gave logits that are not finite")
        return np.asarray(logits.argmax(1), np.int64)

    return recognise
