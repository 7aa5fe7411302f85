"""The record in a file that the native engine runs, whether it is a record's own file or a program file."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.native.file import SUFFIX
from dq_deploy.record import Record, load_record


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
    from dq_deploy.native.file.content import read_program_file

    return read_program_file(path, hash_check=hash_check).record
