"""What the exporter would write wrongly gives what torch gives, at sizes that were not traced."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.graph.trace import trace


class Repeating(torch.nn.Module):
    """Repeats each entry of an axis as often as there are frames."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, sample: torch.Tensor, text: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        return (text.repeat_interleave(sample.shape[1], dim=self.dim),)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, None])
def test_entries_are_repeated_as_often_as_an_axis_is_long(dim: int | None, tmp_path) -> None:
    module = Repeating(dim)
    example = {"sample": np.zeros((2, 5), np.float32), "text": np.zeros((2, 3, 4), np.float32)}
    shapes = {"sample": ("B", "frames"), "text": ("B", 3, 4)}
    write_onnx(trace(module, example, shapes=shapes), tmp_path / "net.onnx", None)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for batch, frames in ((1, 2), (2, 2), (3, 5), (4, 2)):
        text = np.random.default_rng(0).normal(size=(batch, 3, 4)).astype(np.float32)
        sample = np.zeros((batch, frames), np.float32)
        (output,) = session.run(None, {"sample": sample, "text": text})
        expected = module(torch.from_numpy(sample), torch.from_numpy(text))[0].numpy()
        np.testing.assert_array_equal(output, expected)
