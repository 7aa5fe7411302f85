"""Opens what the native engine runs: a program file, or the record in one or in its own file."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.errors import MissingDependencyError
from dq_deploy.native.file import SUFFIX
from dq_deploy.native.file.layout import HashCheck, read_file
from dq_deploy.native.file.program_file import ProgramFile
from dq_deploy.record import Record, load_record


def read_program_file(path: str | Path, *, hash_check: bool = True) -> ProgramFile:
    """Map a program file and check all of it; nothing of it runs, and torch is not needed.

    Args:
        path: of the file.
        hash_check: also compare weights and parameters with their hashes; header, program and addresses are checked
            in any case.

    Raises:
        FileProblemError: missing, damaged, of another version, or with a program that leaves its memory.
        MissingDependencyError: the CPU kernels were not built.
    """
    mapped = read_file(Path(path))
    hashes = HashCheck(mapped) if hash_check else None  # at work while the rest is loaded and the program is checked
    try:
        try:
            from dq_deploy.native.file.content import program_of
        except ImportError as error:
            raise MissingDependencyError(f"the package dq_kernels cannot be imported: {error}") from error
        return program_of(mapped)
    finally:
        if hashes is not None:
            hashes.finish()  # what was damaged is named before what came of it


def record_of_engine(path: Path, *, hash_check: bool = True) -> Record:
    """The record of a file that the native engine runs.

    Args:
        path: a record, or a program file.
        hash_check: refuse a file whose content is not what was written.

    Raises:
        FileProblemError: it is neither, or damaged.
    """
    if path.suffix != SUFFIX:
        return load_record(path, hash_check=hash_check)
    return read_program_file(path, hash_check=hash_check).record
