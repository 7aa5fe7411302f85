"""Save and load records by extension."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from dq_deploy.artifacts import atomic_path, check_no_stream
from dq_deploy.errors import FileProblemError, RecordError
from dq_deploy.record.files import safetensors as safetensors_file
from dq_deploy.record.files import torch_file
from dq_deploy.record.files.arrays import (
    arrays_from_record,
    bare_header,
    hashed_header,
    record_from_arrays,
    sha256_of_content,
    with_known_sha256,
)
from dq_deploy.record.running import check_is_record
from dq_deploy.record.values import Record

FORMS: dict[str, ModuleType] = {".pt": torch_file, ".safetensors": safetensors_file}
"""The module of each file extension."""


_NAME = "give the output a name such as model.pt"


def _form_of(path: Path, advice: str) -> ModuleType:
    if path.suffix not in FORMS:
        raise FileProblemError(
            f"{path} has the extension {path.suffix!r}, expected {' or '.join(FORMS)} for a record; {advice}"
        )
    return FORMS[path.suffix]


def check_record_path(path: str | Path) -> None:
    """Refuse early a file name a record cannot be saved under.

    Raises:
        FileProblemError: the extension is not one of `FORMS`, or a folder has the name.
    """
    path = Path(path)
    if path.is_dir():
        raise FileProblemError(f"output {path} is a folder, expected a file name such as {path / 'model.pt'}; add one")
    _form_of(path, _NAME)


def save_record(record: Record, path: str | Path) -> None:
    """Write a record as `.pt` or `.safetensors`, whole or not at all; the same record gives the same bytes.

    Raises:
        FileProblemError: another extension, or the file cannot be written.
        RecordError: a configuration in the record is not JSON.
    """
    check_is_record(record, "what is to be saved")
    path = Path(path)
    form = _form_of(path, _NAME)
    header, arrays = arrays_from_record(record)
    header = hashed_header(header, arrays)
    with atomic_path(path) as temporary:
        form.write_arrays(temporary, header, arrays)


def load_record(path: str | Path, *, hash_check: bool = True) -> Record:
    """Read a record and check everything that can be checked without building the model.

    Args:
        path: `.pt` or `.safetensors` file.
        hash_check: compare the content with the hash that was stored with it; records of schema versions 1 and 2 have
            none. False trusts the file and saves the time.

    Raises:
        FileProblemError: missing, truncated, damaged, or not a record; code in it is never executed.
        RecordError: an invariant is broken, or a newer version wrote it; the message names file and layer.
    """
    path = Path(path)
    check_no_stream(path)
    text, arrays = _form_of(path, "give what dq-quantize wrote").arrays_from_file(path)
    try:
        header, stored = bare_header(text)
        digest = sha256_of_content(header, dict(sorted(arrays.items()))) if hash_check else None
        if digest is not None and stored not in (None, digest):
            raise FileProblemError(
                f"{path} is not what was written: its content has the hash {digest[:12]}, the file says "
                f"{stored[:12]}; copy the file again"
            )
        record = record_from_arrays(header, arrays)
        return record if digest is None else with_known_sha256(record, digest)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
