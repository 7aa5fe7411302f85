"""The Inception-v3 of the FID (Heusel et al., 2017), for weights that the user brings.

Only the distance in features of `pt_inception-2015-12-05-6726825d.pth`, the published conversion of the network the
FID is defined with, may be called FID; its hash is checked. Those weights were not at hand where this was written:
no FID was ever computed with it. On random weights its features were those of the package pytorch-fid 0.3.0, to
1e-5 with a mean of 3.8.

The network is Inception-v3 (Szegedy et al., 2015, arXiv 1512.00567, 1008 classes, no auxiliary head) with three
changes of the FID's graph: mean pools inside the blocks leave the padding out, and the last block takes a maximum
pool. Images are resized bilinearly to 299 x 299.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError
from dq_deploy.numerics.arrays import F32
from dq_deploy.quality.features import FeatureExtractor, Outputs, as_rgb

FID_SHA256_PREFIX = "6726825d"
SIZE = 299
DIMENSION = 2048
CLASSES = 1008

Row = tuple[str, int, int | tuple[int, int], int, int | tuple[int, int]]
"""Name, output channels, kernel, stride, padding of one convolution."""


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Any, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, H', W']."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _mean_pool(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def _shrinking_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2)


POOLS = {"mean": _mean_pool, "max": _max_pool, "shrink": _shrinking_pool}


class Block(nn.Module):
    """Parallel branches of one input, joined along the channels.

    A branch is a tuple of rows; `"mean"`, `"max"` or `"shrink"` in the place of a row is a pool; a tuple of rows in
    the place of a last row is a fork whose ends are joined.
    """

    def __init__(self, c_in: int, branches: tuple[tuple[Any, ...], ...]) -> None:
        super().__init__()
        self.branches = branches
        self.width = 0
        for branch in branches:
            width = c_in
            for row in branch:
                if isinstance(row, str):
                    continue
                ends = row if isinstance(row[0], tuple) else (row,)
                for name, *shape in ends:
                    self.add_module(name, Convolution(width, *shape))
                width = sum(end[1] for end in ends)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, width, H', W']."""
        found = []
        for branch in self.branches:
            y = x
            for row in branch:
                if isinstance(row, str):
                    y = POOLS[row](y)
                elif isinstance(row[0], tuple):
                    y = torch.cat([self.get_submodule(end[0])(y) for end in row], 1)
                else:
                    y = self.get_submodule(row[0])(y)
            found.append(y)
        return torch.cat(found, 1)


def _a(pool: int) -> tuple[tuple[Any, ...], ...]:
    return (
        (("branch1x1", 64, 1, 1, 0),),
        (("branch5x5_1", 48, 1, 1, 0), ("branch5x5_2", 64, 5, 1, 2)),
        (("branch3x3dbl_1", 64, 1, 1, 0), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 1, 1)),
        ("mean", ("branch_pool", pool, 1, 1, 0)),
    )


_B = (
    (("branch3x3", 384, 3, 2, 0),),
    (("branch3x3dbl_1", 64, 1, 1, 0), ("branch3x3dbl_2", 96, 3, 1, 1), ("branch3x3dbl_3", 96, 3, 2, 0)),
    ("shrink",),
)


def _c(width: int) -> tuple[tuple[Any, ...], ...]:
    flat, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    return (
        (("branch1x1", 192, 1, 1, 0),),
        (("branch7x7_1", width, 1, 1, 0), ("branch7x7_2", width, *flat), ("branch7x7_3", 192, *tall)),
        (
            ("branch7x7dbl_1", width, 1, 1, 0),
            ("branch7x7dbl_2", width, *tall),
            ("branch7x7dbl_3", width, *flat),
            ("branch7x7dbl_4", width, *tall),
            ("branch7x7dbl_5", 192, *flat),
        ),
        ("mean", ("branch_pool", 192, 1, 1, 0)),
    )


_D = (
    (("branch3x3_1", 192, 1, 1, 0), ("branch3x3_2", 320, 3, 2, 0)),
    (
        ("branch7x7x3_1", 192, 1, 1, 0),
        ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
        ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
        ("branch7x7x3_4", 192, 3, 2, 0),
    ),
    ("shrink",),
)


def _e(pool: str) -> tuple[tuple[Any, ...], ...]:
    def fork(name: str) -> tuple[Row, Row]:
        return (f"{name}a", 384, (1, 3), 1, (0, 1)), (f"{name}b", 384, (3, 1), 1, (1, 0))

    return (
        (("branch1x1", 320, 1, 1, 0),),
        (("branch3x3_1", 384, 1, 1, 0), fork("branch3x3_2")),
        (("branch3x3dbl_1", 448, 1, 1, 0), ("branch3x3dbl_2", 384, 3, 1, 1), fork("branch3x3dbl_3")),
        (pool, ("branch_pool", 192, 1, 1, 0)),
    )


STEM: tuple[Any, ...] = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    "shrink",
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
    "shrink",
)
BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _B,
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _D,
    "Mixed_7b": _e("mean"),
    "Mixed_7c": _e("max"),
}
STAGE_ENDS = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")


class FidInception(nn.Module):
    """The network: [B, 3, 299, 299] in [-1, 1] to 2048 features and the maps of five stages."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for row in STEM:
            if not isinstance(row, str):
                name, *shape = row
                self.add_module(name, Convolution(width, *shape))
                width = row[1]
        for name, branches in BLOCKS.items():
            block = Block(width, branches)
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, CLASSES)  # in the file, and not used

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features [B, 2048] and maps."""
        maps = []
        for row in (*STEM, *((name,) for name in BLOCKS)):
            if isinstance(row, str):
                x = POOLS[row](x)
                continue
            x = self.get_submodule(row[0])(x)
            if row[0] in STAGE_ENDS:
                maps.append(x)
        return x.mean((2, 3)), maps


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common class for a bad file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise FileProblemError(
            f"cannot load Inception weights from {path}: {reason}; expected pt_inception-2015-12-05-6726825d.pth"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FileProblemError(f"{path} holds no state dict, expected pt_inception-2015-12-05-6726825d.pth")
    return found


def inception_from_weights(weights: dict[str, Tensor], path: Path) -> FidInception:
    """The network with these weights, in evaluation mode.

    Raises:
        FileProblemError: a tensor is missing, superfluous, or of another shape.
    """
    with torch.device("meta"):
        network = FidInception()
    expected = network.state_dict()
    # files saved by old versions have no counters, and nothing here uses them
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    weights = counters | weights
    wrong = [n for n, t in expected.items() if n not in weights or weights[n].shape != t.shape]
    wrong += [n for n in weights if n not in expected]
    if wrong:
        raise FileProblemError(
            f"{path} is not the FID's Inception: {len(wrong)} tensors are missing, superfluous or of another shape, "
            f"the first {wrong[0]}; expected pt_inception-2015-12-05-6726825d.pth"
        )
    network.load_state_dict(weights, assign=True)
    network.float().eval()
    return network


def load_inception(path: Path) -> FeatureExtractor:
    """The extractor of a file of Inception weights; its distance is called FID only if the file's hash says so.

    Raises:
        FileProblemError: the file is missing, broken, or holds another network.
    """
    network = inception_from_weights(_weights(path), path)
    verified = sha256_of_file(path).startswith(FID_SHA256_PREFIX)

    def run(images: F32) -> Outputs:
        with torch.inference_mode():
            x = torch.from_numpy(as_rgb(images))
            # as the reference in PyTorch: bilinear, not averaged where images shrink
            x = functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
            features, maps = network(x)
            return features.numpy(), tuple(m.numpy() for m in maps)

    return FeatureExtractor(
        name="Inception-v3 of the FID" if verified else "inception (unverified weights)",
        frechet_name="FID" if verified else "FD-inception (unverified weights)",
        kernel_name="KID" if verified else "KD-inception (unverified weights)",
        dimension=DIMENSION,
        has_maps=True,
        network=run,
        batch=16,
    )
