"""Tensors of all inputs in memory or in files that nothing is left of: the same values, and a full disk is an error."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch

from dq_deploy.errors import FileProblemError
from dq_deploy.methods.blocks.storage import BlockStore


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_what_is_written_is_read(
    on_disk: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = torch.arange(5 * 3000).reshape(5, 3000).to(dtype)
    room = BlockStore(on_disk=on_disk).room(values.shape, values[:1])
    room.fill(slice(0, 3), values[:3])
    room.fill(slice(3, 5), values[3:])
    kept = room.take(slice(1, 4))
    assert torch.equal(room.take(torch.tensor([4, 0, 4])), values[[4, 0, 4]])
    room.fill(slice(0, 5), torch.zeros_like(values))
    assert torch.equal(kept, values[1:4]) is on_disk  # of a file a copy
    assert not any(tmp_path.iterdir())


def test_an_empty_tensor_needs_no_file() -> None:
    room = BlockStore(on_disk=True).room((0, 4), torch.ones(1))
    assert room.pages is None


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _start: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileProblemError, match=r"no room for .* GiB of blocks' inputs .*set TMPDIR"):
        BlockStore(on_disk=True).room((4, 1024), torch.ones(1))
