"""What a record holds that no engine runs, and what its import left out: said beside every verdict."""

from __future__ import annotations

from dq_deploy.record import Record


def record_notes(record: Record) -> list[str]:
    """One line each for attention quantizers that are kept and not run, and for what an import left out."""
    notes = []
    kept = sum(len(own.tables) for own in record.attention.values())
    if kept:
        first = next(iter(record.attention))
        notes.append(
            f"{kept} quantizers of attention's products are kept in the record and not run, {first} first: both "
            "products are float in every engine, so the output is not that of the source where it quantizes them"
        )
    for stage in record.provenance.get("history", ()):
        if not isinstance(stage, dict) or stage.get("stage") != "left out":
            continue
        for reason, names in stage.get("reasons", {}).items():
            notes.append(f"left out on import, {len(names)} quantizers of attention, {names[0]} first: {reason}")
        if not stage.get("reasons"):  # of an import by an earlier version
            names = stage.get("attention_quantizers", ())
            notes.append(f"left out on import: {len(names)} quantizers of attention")
    return notes
