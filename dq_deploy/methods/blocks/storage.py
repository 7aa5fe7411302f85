"""Room for what blocks are given and give: in memory, or in temporary files that are mapped into it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dq_deploy.errors import FileProblemError

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class Room:
    """A tensor with room for all calibration inputs.

    Attributes:
        values: [N, ...].
        pages: of the file that holds it, or None where memory does.
        device: where entries are wanted; the whole is in the memory of the CPU or in a file.
    """

    values: torch.Tensor
    pages: mmap.mmap | None = None
    device: str = "cpu"

    def take(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Some entries; of a file a copy, so that its pages need not stay in memory."""
        chosen = self.values[index]
        if self.device != "cpu":
            chosen = chosen.to(self.device)
            self.release()
            return chosen
        if self.pages is None:
            return chosen
        copy = chosen.clone() if isinstance(index, slice) else chosen
        self.release()
        return copy

    def fill(self, chunk: slice, values: torch.Tensor) -> None:
        """Write some entries."""
        self.values[chunk] = values
        self.release()

    def release(self) -> None:
        """Let the system have the pages of the file back; what was written stays in the file."""
        if self.pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, kw_only=True)
class BlockStore:
    """Where tensors of all calibration inputs are kept.

    Files are in the system's temporary folder (`TMPDIR`) and have no name: nothing is left of one when the last tensor
    that reads it is gone, however the process ends.

    Attributes:
        on_disk: in files, else in memory.
        device: where entries are wanted.
    """

    on_disk: bool = False
    device: str = "cpu"

    @property
    def in_memory(self) -> BlockStore:
        """The same in memory."""
        return replace(self, on_disk=False)

    def room(self, shape: Sequence[int], like: torch.Tensor) -> Room:
        """Room for a tensor of this shape and the type of another.

        Raises:
            FileProblemError: the disk is full.
        """
        count = 1
        for size in shape:
            count *= size
        size = count * like.element_size()
        if not self.on_disk or not size:
            return Room(values=torch.empty(tuple(shape), dtype=like.dtype), device=self.device)
        with tempfile.TemporaryFile(prefix="dq-blocks-") as file:
            try:
                _reserve(file.fileno(), size)
            except OSError as error:
                raise FileProblemError(
                    f"the temporary folder {tempfile.gettempdir()} has no room for {size / GIB:.3g} GiB of blocks' "
                    f"inputs ({error.strerror}); set TMPDIR to a folder with room, or use fewer `samples`"
                ) from error
            pages = mmap.mmap(file.fileno(), size)
        values = torch.frombuffer(pages, dtype=like.dtype, count=count).reshape(tuple(shape))
        return Room(values=values, pages=pages, device=self.device)


def _reserve(file: int, size: int) -> None:
    """Have the disk hold so many bytes: a write into the map of a file that cannot grow would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
