"""Files the tools write: complete under their final name, or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

from dq_deploy.errors import FileProblemError

NPZ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, BadZipFile, zlib.error)
"""What `numpy.load` raises for a file that is missing, damaged, truncated, or no archive of arrays."""


def sha256_of_bytes(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path) -> None:
    """Refuse early an output that could not be written at the end.

    Raises:
        FileProblemError: the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise FileProblemError(f"output {path} is a folder, expected a file name; add one")
    folder = path.parent
    if not folder.is_dir():
        raise FileProblemError(f"folder {folder} does not exist; create it or choose another --out")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileProblemError(f"cannot write into {folder}: {error.strerror}; choose another --out") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder that becomes `path` when the block ends well.

    On any exception, an interrupt included, the temporary file is removed and `path` is left as it was.

    Raises:
        FileProblemError: the file cannot be written (no folder, no permission, disk full).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileProblemError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write bytes through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
