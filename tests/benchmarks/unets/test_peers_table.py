"""W4A8 and W8A8 stand in one table, and the last row of each kind counts."""

from __future__ import annotations

import json

from benchmarks.unets import peers_table


def row(bits: str, native: float, commit: str = "abc", **more):
    def engine(ms: float, peak: float):
        return {"ms": {"rounds": [ms], "p50": ms}, "peak_mib": peak}

    engines = {"native": engine(native, 10.0), "openvino": engine(30.0, 40.0), "openvino int8": engine(60.0, 50.0)}
    return {
        "key": {"model": "cifar", "bits": bits, "isa": "avx512_vnni", "threads": 2, "batch": 1, **more},
        "commit": commit,
        "engines": engines,
        "native_is": {name: {"speedup": engines[name]["ms"]["p50"] / native} for name in list(engines)[1:]},
        "fidelity": {name: {"psnr_db": 40.0, "of": "8 outputs of one step"} for name in engines},
        "not_run": {"sdnq int8": "no such package"},
    }


def test_a_table_holds_both_widths_and_says_what_was_not_run(tmp_path, capsys):
    results = tmp_path / "unets.jsonl"
    rows = [row("W8A8", 99.0), row("W8A8", 20.0, "def"), row("W4A8", 15.0), row("W4A8", 10.0, bf16=False)]
    results.write_text("".join(json.dumps(value) + "\n" for value in rows))

    assert peers_table.main(["--results", str(results)]) == 0
    text = capsys.readouterr().out
    assert "| **native W8A8** | 20.0 |  |  | 10 | 40.0 |" in text
    assert (
        "cifar, AVX512-VNNI with bfloat16, batch 1, threads 2; PSNR of 8 outputs of one step; commit abc, def" in text
    )
    assert "| OpenVINO as it comes | 30.0 | 2.00x | 1.50x | 40 | 40.0 |" in text
    assert "| our exact graph on OpenVINO, W4A8 | 60.0 | 4.00x |  | 50 | 40.0 |" in text
    assert "cifar, AVX512-VNNI without bfloat16, batch 1, threads 2" in text
    assert "sdnq int8 was not run: no such package." in text
