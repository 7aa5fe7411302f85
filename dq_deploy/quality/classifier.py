"""A small convolutional classifier of 32 x 32 digits, to ask whether a sample shows what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dq_deploy.artifacts import utf8_name
from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.numerics.arrays import F32
from dq_deploy.quality.features import FeatureExtractor, Outputs

if TYPE_CHECKING:
    from torch import nn

IMAGE_SHAPE = (1, 32, 32)
CLASSES = 10


def build_digit_classifier() -> nn.Sequential:
    """The untrained network: [B, 1, 32, 32] in [-1, 1] to [B, 10] logits."""
    from torch import nn

    def stage(width_in: int, width_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    layers = [*stage(1, 24), *stage(24, 48), *stage(48, 64), nn.Flatten(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(64 * 4 * 4, CLASSES))


def load_digit_classifier(path: Path) -> nn.Sequential:
    """The trained network from a safetensors file, in evaluation mode.

    Raises:
        FileProblemError: the file is missing, broken, or holds another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = build_digit_classifier()
    try:
        with utf8_name(path) as name:
            network.load_state_dict(load_file(name))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileProblemError(
            f"cannot load the digit classifier from {path}: {reason}; expected the weights that "
            "examples/digit-classifier/train.py writes"
        ) from error
    return network.eval()


def recognised_labels(network: nn.Module, images: NDArray[np.floating], *, batch: int = 250) -> NDArray[np.int64]:
    """The digit the network sees in each image.

    Args:
        network: from `load_digit_classifier`.
        images: [N, 1, 32, 32] float in [-1, 1].
        batch: images at a time.

    Returns:
        [N] int64 in 0..9.

    Raises:
        InputError: wrong shape or non-finite values.
    """
    import torch

    x = np.asarray(images, np.float32)
    if x.ndim != 4 or x.shape[1:] != IMAGE_SHAPE or not np.isfinite(x).all():
        raise InputError(f"images are {x.shape}, expected finite [N, {', '.join(map(str, IMAGE_SHAPE))}]")
    with torch.inference_mode():
        found = [network(torch.from_numpy(x[i : i + batch])).argmax(1).numpy() for i in range(0, len(x), batch)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def load_digit_extractor(path: Path) -> FeatureExtractor:
    """The digit classifier as an extractor: the 1024 values its last layer sees, and the maps of its three stages.

    Raises:
        FileProblemError: the file is missing, broken, or holds another network.
    """
    network = load_digit_classifier(path)

    def run(images: F32) -> Outputs:
        import torch
        from torch import nn

        if images.shape[1:] != IMAGE_SHAPE:
            raise InputError(f"images are {images.shape}, expected [N, {', '.join(map(str, IMAGE_SHAPE))}]")
        x, maps = torch.from_numpy(images), []
        with torch.inference_mode():
            for layer in list(network)[:-1]:
                x = layer(x)
                if isinstance(layer, nn.MaxPool2d):
                    maps.append(x.numpy())
        return x.numpy(), tuple(maps)

    return FeatureExtractor(
        name="digit-classifier",
        frechet_name="FD-digit-classifier",
        kernel_name="KD-digit-classifier",
        dimension=64 * 4 * 4,
        has_maps=True,
        network=run,
        batch=250,
    )
