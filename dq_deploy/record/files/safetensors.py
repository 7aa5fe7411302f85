"""The `.safetensors` form of a record: the arrays as tensors, the JSON header as the only metadata entry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dq_deploy.artifacts import utf8_name
from dq_deploy.errors import FileProblemError
from dq_deploy.record.files.arrays import FORMAT, Arrays


def write_arrays(path: Path, header: str, arrays: Mapping[str, NDArray[Any]], *, key: str = FORMAT) -> None:
    """Write the file; safetensors orders tensors itself, so the same content gives the same bytes.

    Args:
        path: to write.
        header: text beside the arrays.
        arrays: by name.
        key: what the header is stored under.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(arrays), path, metadata={key: header})
    except SafetensorError as error:
        raise OSError(f"safetensors cannot write it: {error}") from error


def arrays_from_file(path: Path) -> tuple[str, Arrays]:
    """Header and arrays of a `.safetensors` record.

    Raises:
        FileProblemError: missing, truncated, damaged, or not a record.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileProblemError(f"{path} {what}; expected a record from dq-quantize")
    try:
        with utf8_name(path) as name, safe_open(name, framework="np") as stream:
            header = (stream.metadata() or {}).get(FORMAT)
            arrays = {key: stream.get_tensor(key) for key in stream.keys()} if header is not None else {}  # noqa: SIM118
    except SafetensorError as error:
        raise FileProblemError(
            f"{path} is truncated, damaged or not a safetensors file ({error}); copy the file again"
        ) from error
    except (TypeError, AttributeError, KeyError) as error:  # element types numpy has not
        raise FileProblemError(f"{path} has a tensor of a type records do not use ({error})") from error
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror or error}") from error
    if header is None:
        raise FileProblemError(
            f"{path} is a safetensors file but not a record (no {FORMAT!r} metadata); make one by dq-quantize"
        )
    return header, arrays
