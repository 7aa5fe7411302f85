"""What `dq-info` shows of a program file: what it is packed for and runs, and the record in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from dq_deploy.cli.frame import console
from dq_deploy.cli.text.info.facts import facts_table, value_text
from dq_deploy.cli.text.info.record import show_record


def summary_of_program(path: Path, *, hash_check: bool = True) -> dict[str, Any]:
    """Facts of a program file and of the record in it as JSON values; the file is checked whole, nothing runs.

    Raises:
        FileProblemError: it is damaged, of another version, or leaves its memory.
    """
    from dq_deploy.native.file.opening import read_program_file
    from dq_deploy.record.summary import MIB, summarize_record

    held = read_program_file(path, hash_check=hash_check)
    kinds = Counter(str(op[0]) for op in held.joined["ops"])
    program = {
        "isa": held.isa,
        "packed_parts": len(held.packed),
        "packed_weights_mib": sum(weights.nbytes for weights in held.packed.values()) / MIB,
        "ops": dict(kinds.most_common()),
        "buffers": len(held.joined["buffers"]),
    }
    summary = summarize_record(held.record)
    return {"path": str(path), "file_mib": held.nbytes / MIB, **summary, "kind": "program", "program": program}


def show_program(summary: dict[str, Any]) -> None:
    """Print what `summary_of_program` found."""
    program = summary["program"]
    facts = {
        "packed for": program["isa"],
        "packed weights": f"{program['packed_weights_mib']:.3f} MiB, {program['packed_parts']} layer parts",
        "operations": value_text(program["ops"]),
        "values": f"{program['buffers']} buffers; every address was checked, for every batch",
        "made from record": summary["content_sha256"],
    }
    console().print(facts_table(f"{summary['path']}, a program file", facts), markup=False)
    show_record(summary)
