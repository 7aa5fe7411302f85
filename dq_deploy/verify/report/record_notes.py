"""What a record holds that no engine runs, and what its import left out: said beside every verdict."""

from __future__ import annotations

from dq_deploy.record import Record


def record_notes(record: Record, *, attention_in_codes: bool = False) -> list[str]:
    """One line each for attention quantizers that are not run, and for what an import left out.

    Args:
        record: the quantized denoiser.
        attention_in_codes: whether the engine runs these quantizers, as far as they can be run.
    """
    notes = []
    idle = {n: own for n, own in record.attention.items() if not attention_in_codes or own.why_not_int8}
    kept = sum(len(own.tables) for own in idle.values())
    if kept:
        first = next(iter(idle))
        why = f" ({idle[first].why_not_int8})" if attention_in_codes else ""
        notes.append(
            f"{kept} quantizers of attention's products are not run, {first} first{why}: both products are float here, "
            "so the output is not that of the source where it quantizes them; the native engine runs them with "
            "`attention` int8"
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
