"""Files of tensors from elsewhere, read without running anything in them, as numpy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.artifacts import utf8_name
from dq_deploy.errors import FileProblemError, raise_if_out_of_memory
from dq_deploy.numerics.arrays import Array

if TYPE_CHECKING:
    import torch


PICKLE_LIMIT = 64 * 2**20
"""Bytes of pickle that a checkpoint may hold; tensors lie beside it."""

SHARED_LIMIT = 2
"""How often a checkpoint's bytes may be declared: tied weights are stored once."""


class Tensors:
    """The tensors of a state dict by name, and which of them were asked for.

    Attributes:
        source: what they were read from, for messages.
    """

    def __init__(self, values: Mapping[str, Array], source: str) -> None:
        self._values = dict(values)
        self._asked: set[str] = set()
        self.source = source

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def take(self, name: str) -> Array:
        """The tensor of this name; numbers must be finite.

        Raises:
            FileProblemError: it is missing, or holds NaN or infinity.
        """
        if name not in self._values:
            raise FileProblemError(
                f"{self.source} lacks {name}, which the settings ask for; check `reader` and settings"
            )
        self._asked.add(name)
        value = self._values[name]
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise FileProblemError(f"{self.source}: {name} holds NaN or infinity, expected finite numbers")
        return value

    def set_aside(self, prefix: str) -> None:
        """Count every tensor under a prefix as asked for, whatever it holds."""
        self._asked |= {name for name in self._values if name.startswith(prefix)}

    def maybe(self, name: str) -> Array | None:
        """The tensor of this name, or None where there is none."""
        return self.take(name) if name in self._values else None

    def unasked(self) -> list[str]:
        """Names that nobody asked for, sorted."""
        return sorted(set(self._values) - self._asked)


def few(names: list[str] | tuple[str, ...]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The dict in a file of `torch.save`: tensors as arrays, dicts of them one level down; nothing else is read.

    Raises:
        FileProblemError: missing, truncated, with Python objects inside, or of declared sizes that the file cannot
            hold. Nothing in the file is executed.
    """
    content = _load(path)
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise FileProblemError(f"{path} holds a {type(content).__name__}, expected a dict of named tensors")
    _check_declared(content, path)
    return {key: _arrays_of(value, key, path) for key, value in content.items()}


def _check_declared(content: Mapping[str, Any], path: Path) -> None:
    """Tensors may share what is stored, but each becomes an array of its own: not many times what the file holds."""
    declared = 0
    for key, value in content.items():
        inside = value.items() if isinstance(value, dict) else ()
        for name, one in ((key, value), *((f"{key}.{inner}", one) for inner, one in inside)):
            if _is_tensor(one):
                _check_stored(one, name, path)
                declared += one.numel() * one.element_size()
    stored = path.stat().st_size
    if declared > SHARED_LIMIT * stored:
        raise FileProblemError(
            f"{path} declares tensors of {declared} bytes and stores {stored}; the file is not a checkpoint"
        )


def _arrays_of(value: Any, key: str, path: Path) -> Any:
    if _is_tensor(value):
        return _array(value, key, path)
    if isinstance(value, dict):
        named = {inner: one for inner, one in value.items() if isinstance(inner, str) and _is_tensor(one)}
        return {inner: _array(one, f"{key}.{inner}", path) for inner, one in named.items()}
    return None


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _array(value: torch.Tensor, key: str, path: Path) -> Array:
    """float32 or integer array."""
    _check_stored(value, key, path)
    array: Array = (value.float() if value.is_floating_point() else value).detach().contiguous().numpy()
    return array


def _check_stored(value: torch.Tensor, key: str, path: Path) -> None:
    """Refuse what is no plain tensor, or larger than what is stored for it."""
    import torch

    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise FileProblemError(f"{path}: {key} is no plain tensor of numbers, expected one")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FileProblemError(
            f"{path}: {key} declares {value.numel()} elements and stores fewer; the file is not a checkpoint"
        )


def _load(path: Path) -> Any:
    import torch

    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise_if_out_of_memory(error)
        text = str(error)
        if "weights_only" in text.lower() or "unsupported global" in text.lower():
            raise FileProblemError(
                f"{path} holds Python objects besides tensors; nothing was executed, save its state dict alone"
            ) from error
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise FileProblemError(f"{path} is truncated or damaged ({first}); copy the file again") from error


def _check_archive(path: Path) -> None:
    """Refuse what torch would unpack into more than the file holds."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileProblemError(f"{path} {what}; expected a checkpoint written by torch.save")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        start = path.read_bytes()[:4] if path.stat().st_size < PICKLE_LIMIT else b""
        what = "is truncated or damaged" if start == b"PK\x03\x04" else "is no archive of torch.save"
        raise FileProblemError(
            f"{path} {what}; copy it again, or load and save it with a torch of version 1.6 or newer"
        ) from error
    declared = sum(entry.file_size for entry in entries)
    squeezed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if declared > path.stat().st_size or squeezed or any(entry.file_size > PICKLE_LIMIT for entry in pickles):
        raise FileProblemError(
            f"{path} declares {declared} bytes of content in a file of {path.stat().st_size}, or compresses it; "
            "nothing was unpacked"
        )


def load_float_file(path: Path) -> dict[str, Array]:
    """The state dict of a float model: .safetensors, or a file of `torch.save`, `state_dict` inside or plain.

    Raises:
        FileProblemError: missing, damaged, or no state dict.
    """
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content = load_checkpoint(path)
    inner = content.get("state_dict")
    state = inner if isinstance(inner, dict) else content
    tensors = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise FileProblemError(f"{path} holds no tensors by name, expected the state dict of a float model")
    return tensors


def _load_safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with utf8_name(path) as name:
            return {key: _array(value, key, path) for key, value in load_file(name).items()}
    except FileNotFoundError as error:
        raise FileProblemError(f"{path} does not exist; expected the weights of the float model") from error
    except SafetensorError as error:
        raise FileProblemError(f"{path} is truncated or damaged ({error}); copy the file again") from error
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror or error}") from error
