"""Markdown tables of what `benchmarks.unets.run` measured: one for each model, CPU, batch and number of threads.

    python -m benchmarks.unets.peers_table                    # of all rows in benchmarks/results/unets.jsonl
    python -m benchmarks.unets.peers_table --model cifar

The last row of each kind counts. W4A8 and W8A8 stand in one table: a peer was measured with both, and its time is the
median over the rounds of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.unets.engines import ENGINES, EXACT, NATIVE
from benchmarks.unets.run import BATCHES, Options

ROOT = Path(__file__).resolve().parents[1]
CPUS = {
    "amx": "AMX",
    "avx512_vnni": "AVX512-VNNI with bfloat16",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "portable": "plain C++, libraries unbound",
}
WORDS = {
    "onnxruntime int8": "our exact graph on ONNX Runtime",
    "openvino int8": "our exact graph on OpenVINO",
    "openvino": "OpenVINO as it comes",
    "openvino float32": "OpenVINO, float32",
    "nncf int8": "NNCF int8 on OpenVINO",
    "onnxruntime float32": "ONNX Runtime, float32",
    "onnxruntime qdq": "ONNX Runtime, its own int8 (QDQ)",
    "torch float32": "torch, float32",
    "torch bfloat16": "torch, bfloat16",
    "torch compiled bfloat16": "torch.compile, bfloat16",
    "sdnq int8": "SDNQ int8 on torch",
}
Row = Mapping[str, Any]


def groups(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """The last green row of each kind with PSNR in it: by title, then by bits."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if "fidelity" in row:
            found.setdefault(title_of(row["key"]), {})[row["key"]["bits"]] = row
    return found


def title_of(key: Mapping[str, Any]) -> str:
    """What a table is of."""
    cpu = "AVX512-VNNI without bfloat16" if key.get("bf16") is False else CPUS[key["isa"]]
    attention = f", native attention in {key['attention']}" if "attention" in key else ""
    return f"{key['model']}, {cpu}, batch {key['batch']}, threads {key['threads']}{attention}"


def lines_of(by_bits: Mapping[str, Row]) -> Iterator[str]:
    """One table."""
    bits = sorted(by_bits)
    ratios = " | ".join(f"native {name} is" for name in bits)
    yield f"| engine | ms | {ratios} | peak MiB | PSNR, dB |"
    yield "|---|---:|" + "---:|" * len(bits) + "---:|---:|"
    for name in bits:
        yield cells(f"**native {name}**", [by_bits[name]], NATIVE, ["" for _ in bits])
    for engine in ENGINES:
        ours = [(name,) for name in bits] if engine in EXACT else [tuple(bits)]
        for group in ours:
            have = [name for name in group if engine in by_bits[name]["engines"]]
            if have:
                words = WORDS[engine] + (f", {have[0]}" if engine in EXACT else "")
                yield cells(words, [by_bits[n] for n in have], engine, [ratio(by_bits, n, engine, have) for n in bits])


def ratio(by_bits: Mapping[str, Row], bits: str, engine: str, have: Sequence[str]) -> str:
    """How many times as fast the native engine is; nothing where it was not measured beside."""
    return f"{by_bits[bits]['native_is'][engine]['speedup']:.2f}x" if bits in have else ""


def cells(words: str, rows: Sequence[Row], engine: str, compared: Sequence[str]) -> str:
    """One line of a table."""
    own = [row["engines"][engine] for row in rows]
    ms = float(np.median([value for one in own for value in one["ms"]["rounds"]]))
    near = [row["fidelity"][engine]["psnr_db"] for row in rows if engine in row["fidelity"]]
    peak = max(one["peak_mib"] for one in own)
    psnr = f"{np.mean(near):.1f}" if near else ""
    return f"| {words} | {ms:.1f} | {' | '.join(compared)} | {peak:.0f} | {psnr} |"


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = Options(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", action="append", choices=tuple(BATCHES), help="repeatable; all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "unets.jsonl")
    given: argparse.Namespace = parser.parse_args(words)
    rows = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()]
    for title, by_bits in groups([r for r in rows if r["key"]["model"] in (given.model or BATCHES)]).items():
        first = next(iter(by_bits.values()))
        compared = first["fidelity"].get(NATIVE, {"of": "nothing"})["of"]
        commits = ", ".join(sorted({row["commit"] for row in by_bits.values()}))
        print(f"{title}; PSNR of {compared}; commit {commits}\n")
        print("\n".join(lines_of(by_bits)))
        for engine, why in sorted({pair for row in by_bits.values() for pair in row["not_run"].items()}):
            print(f"\n{engine} was not run: {why}.", end="")
        print("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
