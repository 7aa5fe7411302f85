"""One file of weights: its tensors by name, mapped into memory and read when they are asked for; nothing is run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from dq_deploy.artifacts import utf8_name
from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.models.load.hub_files import check_link, check_not_pointer

if TYPE_CHECKING:
    import torch

WINDOW = 256 * 2**20
"""Bytes read from a file before it is opened anew, so that the pages of tensors that were converted are let go."""


class _Opened(Protocol):
    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...


class TensorFile:
    """The tensors of a safetensors file, or of one that torch.save wrote.

    A tensor is a private map of the file: it costs memory only where it is read, and writing to it changes neither
    the file nor another tensor of the same name. Only the older form of torch.save cannot be mapped.

    Attributes:
        path: the file.
        names: of its tensors, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check that it is whole.

        Raises:
            ModelError: it cannot be read, is damaged, or holds something else than named tensors.
        """
        self.path = path
        self._opened: _Opened | None = _opened(path)
        self._read = 0
        self.names = tuple(self._opened.keys())

    def read(self, name: str) -> torch.Tensor:
        """A tensor as the file holds it."""
        if self._opened is None:
            self._opened = _opened(self.path)
        value = self._opened.get_tensor(name).detach()
        self._read += value.nbytes
        if self._read >= WINDOW and not isinstance(self._opened, _Held):
            self._opened, self._read = None, 0
        return value


class _Saved:
    """Tensors of a file by torch.save."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = state

    def keys(self) -> list[str]:
        return list(self._state)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._state[name]


class _Held(_Saved):
    """Of the older form, which is in memory as a whole."""


def _opened(path: Path) -> _Opened:
    check_link(path)
    try:
        check_not_pointer(path)
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with utf8_name(path) as name:
                return cast("_Opened", safe_open(name, framework="pt"))
        return _saved(path)
    except OSError as error:
        raise ModelError(f"cannot read weights {path}: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        if path.suffix != ".safetensors" and "weights_only" in str(error).lower():
            raise ModelError(
                f"weights {path} hold Python objects besides tensors, or are damaged; nothing was executed, "
                "save the model as safetensors"
            ) from error
        raise ModelError(
            f"weights {path} are truncated or damaged ({first_line(error)}); copy the file again"
        ) from error


def _saved(path: Path) -> _Saved:
    import torch

    mapped = zipfile.is_zipfile(path)
    if mapped:
        _check_declared_sizes(path)
    with utf8_name(path) as name:
        state = torch.load(str(name), map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # of a training program, with its own numbers beside it
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise ModelError(f"weights {path} are not a flat state dict of tensors, expected one")
    return _Saved(state) if mapped else _Held(state)


def _check_declared_sizes(path: Path) -> None:
    """Refuse a zip bomb before torch unpacks it: torch stores weights plainly, so they cannot exceed the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        return  # damaged: torch.load says so
    declared = sum(entry.file_size for entry in entries)
    if declared > path.stat().st_size or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise ModelError(
            f"weights {path} declare {declared} bytes in a file of {path.stat().st_size}, or compress them; "
            "nothing was unpacked, save the model as safetensors"
        )
