"""What a record may hold that nothing runs yet: refused by name, never left out."""

from __future__ import annotations

from dq_deploy.errors import RecordError
from dq_deploy.record.values import Layer, Record


def check_is_record(record: object, what: str = "the record") -> None:
    """Refuse another value in a record's place, such as the path of one.

    Raises:
        RecordError: says what it is.
    """
    if not isinstance(record, Record):
        raise RecordError(f"{what} is a {type(record).__name__}, expected a Record; of a file use load_record")


def check_can_run(record: Record) -> None:
    """Refuse a record with a layer that this version can only store.

    Attention quantizers are no reason: without them the products are float, which is said where it matters.

    Raises:
        RecordError: names the first such layer, what it has, and what to do; or it is no record.
    """
    check_is_record(record)
    for layer in record.layers.values():
        reason = _stored_only(layer)
        if reason:
            raise RecordError(
                f"layer {layer.name} has {reason}, which this version of dq_deploy stores but does not run; "
                "use a version that does, or quantize without it"
            )


def _stored_only(layer: Layer) -> str:
    if layer.branch is not None:
        return f"a low-rank branch of rank {len(layer.branch.down)}"
    return ""
