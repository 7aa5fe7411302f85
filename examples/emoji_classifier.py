"""A small convolutional classifier of 32 x 32 colour emojis, to ask whether a sample shows what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from emojis import CLASSES, SIZE
from numpy.typing import NDArray

from dq_deploy.errors import FileProblemError, InputError

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (32, 64, 96)


def build_emoji_classifier() -> nn.Sequential:
    """The untrained network: [B, 3, 32, 32] in [-1, 1] to [B, 9] logits."""
    from torch import nn

    layers: list[nn.Module] = []
    for width_in, width_out in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(width_in, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    side = SIZE // 2 ** len(WIDTHS)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(WIDTHS[-1] * side * side, len(CLASSES)))


def load_emoji_classifier(path: Path) -> nn.Sequential:
    """The trained network from a safetensors file, in evaluation mode.

    Raises:
        FileProblemError: the file is missing, broken, or holds another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = build_emoji_classifier()
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileProblemError(
            f"cannot load the emoji classifier from {path}: {reason}; expected the weights that "
            "examples/emoji-classifier/train.py writes"
        ) from error
    return network.eval()


def recognised_emoji_labels(network: nn.Module, images: NDArray[np.floating], *, batch: int = 250) -> NDArray[np.int64]:
    """The class the network sees in each image.

    Args:
        network: from `load_emoji_classifier`.
        images: [N, 3, 32, 32] float in [-1, 1].
        batch: images at a time.

    Returns:
        [N] int64, indices into `emojis.CLASSES`.

    Raises:
        InputError: wrong shape or non-finite values.
    """
    import torch

    x = np.asarray(images, np.float32)
    if x.ndim != 4 or x.shape[1:] != (3, SIZE, SIZE) or not np.isfinite(x).all():
        raise InputError(f"images are {x.shape}, expected finite [N, 3, {SIZE}, {SIZE}]")
    with torch.inference_mode():
        found = [network(torch.from_numpy(x[i : i + batch])).argmax(1).numpy() for i in range(0, len(x), batch)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
