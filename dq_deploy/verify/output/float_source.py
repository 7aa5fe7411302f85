"""The float model that a record was made from, found again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.errors import DqError
from dq_deploy.record import Record

if TYPE_CHECKING:
    from dq_deploy.models import Denoiser

_GIVE = "give the float model's folder as `model`"


def recorded_float_model(record: Record) -> tuple[Denoiser | None, str]:
    """The float model in the folder that the record names, if it is there and the same; else None and why, in words.

    Args:
        record: its provenance holds the folder and the hash of the model.
    """
    from dq_deploy.models import call_of_record, float_model_of

    source, digest = record.provenance.get("source"), record.provenance.get("source_sha256")
    if not (isinstance(source, str) and source and isinstance(digest, str) and digest):
        return None, f"the record does not say which float model it was made from; {_GIVE}"
    if not Path(source).exists():
        return None, f"the folder {source} it was quantized from is not here; {_GIVE}"
    try:
        found = float_model_of(record.provenance, sizes=call_of_record(record).sizes)
    except DqError as error:
        return None, f"the folder {source} it was quantized from cannot be read ({error}); {_GIVE}"
    if found.source_sha256 != digest:
        return None, (
            f"the folder {source} now holds a model of hash {found.source_sha256[:12]}, the record was made from "
            f"{digest[:12]}; {_GIVE}"
        )
    return found, ""
