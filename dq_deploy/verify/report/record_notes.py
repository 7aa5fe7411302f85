"""What a record holds that no engine runs, and what its import left out: said beside every verdict."""

from __future__ import annotations

from collections.abc import Collection

from dq_deploy.record import Record


def record_notes(record: Record, *, in_codes: Collection[str] = ()) -> list[str]:
    """One line each for attention quantizers that are not run, and for what an import left out.

    Args:
        record: the quantized denoiser.
        in_codes: module paths of the attentions that the engine runs with these quantizers.
    """
    notes = []
    idle = {n: own for n, own in record.attention.items() if n not in in_codes}
    kept = sum(len(own.tables) for own in idle.values())
    if kept:
        first = next(iter(idle))
        unable = idle[first].why_not_int8 or "it has a mask, or fewer heads of keys than of queries"
        why = f" ({unable})" if in_codes else ""
        notes.append(
            f"{kept} quantizers of attention's products are not run, {first} first{why}: both products are float here, "
            "so the output is not that of the source where it quantizes them"
            + ("" if in_codes else "; the native engine runs them with `attention` int8")
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
