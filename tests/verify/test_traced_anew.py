"""A proof takes nothing from what it proves: graphs and programs that are kept for the next export are no evidence."""

from __future__ import annotations

import copy

from dq_deploy import export
from dq_deploy.graph import trace
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.models import call_of_record
from dq_deploy.native.runner import NativeRunner
from dq_deploy.native.trace import traced
from dq_deploy.recent import Recent
from dq_deploy.targets.traced_graphs import traced_denoiser
from dq_deploy.verify.file.same_file import TracedOnce, compare_file
from dq_deploy.verify.native.constants import native_differences
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


def test_a_kept_program_that_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(traced, "_PROGRAMS", Recent(2))  # the engine's and the proof's
    record = random_record(tiny_denoiser(**ONE_LEVEL))
    with NativeRunner(record, threads=1) as runner:
        assert list(native_differences(record, runner)) == []
        kinds = [op[0] for op in runner.executor.joined["ops"]]
        attributes = runner.executor.joined["ops"][kinds.index("group_norm_silu_quantize")][3]
        attributes["groups"] = attributes["groups"] // 2  # in the kept program, which another engine would get
    with NativeRunner(copy.deepcopy(record), threads=1) as runner:
        found = [difference.text() for difference in native_differences(record, runner)]
    assert any("groups" in text for text in found), found


def test_a_kept_graph_that_is_wrong_is_found(monkeypatch, tmp_path):
    graphs = Recent(2)
    monkeypatch.setattr(trace, "_GRAPHS", graphs)
    record = random_record(tiny_denoiser(**ONE_LEVEL))
    export(record, tmp_path / "right.onnx")
    (kept, _sizes), *_ = graphs._found.values()
    next(node for node in kept.graph if node.op_type == "Add").op_type = "Sub"
    export(record, tmp_path / "wrong.onnx")
    for name, same in (("right.onnx", True), ("wrong.onnx", False)):
        path = tmp_path / name
        compared = compare_file(path, read_manifest(path), TracedOnce(record))
        assert (compared.differences == ()) == same, name


def test_of_proofs_alone_the_last_graph_and_program_are_kept(monkeypatch):
    graphs, programs = Recent(4), Recent(4)
    monkeypatch.setattr(trace, "_GRAPHS", graphs)
    monkeypatch.setattr(traced, "_PROGRAMS", programs)
    record = random_record(tiny_denoiser(**ONE_LEVEL))
    for anew, count in ((False, 1), (True, 2), (True, 2), (False, 2)):
        traced.traced_program(record, anew=anew)
        traced_denoiser(record.family, record.model_config, record, call_of_record(record), anew=anew)
        assert len(programs._found) == len(graphs._found) == count
