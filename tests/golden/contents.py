"""What the golden files hold: the manifests, the graphs and the native program of one small model, as text.

The model's numbers are fractions of small integers, so no file depends on the machine that writes it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.models import call_of_record
from dq_deploy.native.program.program import loads
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.record import Record
from dq_deploy.targets import engine_graph
from dq_deploy.targets.traced_graphs import traced_denoiser
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

FOLDER = Path(__file__).parent / "files"
TARGETS = (
    ("onnxruntime", "exact"),
    ("onnxruntime", "fast"),
    ("openvino", "exact"),
    ("tensorrt", "exact"),
    ("tensorrt-rtx", "exact"),
)
LEFT_OUT = ("versions", "onnx_sha256", "content_sha256", "data_sha256")
"""Entries of a manifest that differ where nothing of ours does: versions, and hashes of files that hold them."""


def golden_record() -> Record:
    """A record of the tiny denoiser with one level; every weight is a multiple of 1/256."""
    import torch

    denoiser = tiny_denoiser(**ONE_LEVEL)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in denoiser.module.parameters():
            values = rng.integers(-128, 128, tuple(parameter.shape)).astype(np.float32) / 256
            parameter.copy_(torch.from_numpy(values))
    return random_record(denoiser)


def contents() -> dict[str, str]:
    """The text of every golden file by its name."""
    record = golden_record()
    traced = traced_denoiser(record.family, record.model_config, record, call_of_record(record))
    files = {"program.txt": program_text(traced_program(record))}
    with tempfile.TemporaryDirectory() as folder:
        for target, mode in TARGETS:
            path = Path(folder) / f"{target}-{mode}.onnx"
            made = engine_graph(record, target=target, mode=mode, traced=traced)
            write_onnx(made.model, path, made.manifest)
            manifest = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
            files[f"{path.stem}.manifest.json"] = manifest_text(manifest)
            files[f"{path.stem}.graph.txt"] = graph_text(onnx.load(path))
    return files


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest without the versions, a value a line."""
    kept = {key: value for key, value in manifest.items() if key not in LEFT_OUT}
    return json.dumps(kept, indent=1) + "\n"


def graph_text(model: onnx.ModelProto) -> str:
    """A line for each input, node and output of a graph: the operation, the node's name, what it reads and writes."""
    graph = model.graph
    lines = [f"input {value.name}" for value in graph.input]
    lines += [f"{n.op_type} {n.name!r}: {_listed(n.input)} -> {_listed(n.output)}" for n in graph.node]
    lines += [f"output {value.name}" for value in graph.output]
    return "\n".join(lines) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "none" for name in names)


def program_text(program: Mapping[str, Any]) -> str:
    """A line for each buffer, input, instruction and output of a joined native program."""
    program = loads(json.dumps(program))
    lines = [f"buffer {number}: {_view(entry)}" for number, entry in enumerate(program["buffers"])]
    lines += [f"input {name}: {_view(view)}" for name, view in program["inputs"].items()]
    for kind, reads, writes, attributes in program["ops"]:
        lines.append(kind)
        lines += [f"    reads {role}: {_view(view)}" for role, view in reads.items()]
        lines += [f"    writes {role}: {_view(view)}" for role, view in writes.items()]
        lines += [f"    {name} = {_value(value)}" for name, value in attributes.items()]
    lines += [f"output {name}: {_view(view)}" for name, view in program["outputs"].items()]
    lines += [f"constant {name}: {value['dtype']} {value['shape']}" for name, value in program["constants"].items()]
    return "\n".join(lines) + "\n"


def _view(entry: Any) -> str:
    return " ".join(str(_value(value)) for value in entry)


def _value(value: Any) -> Any:
    """A JSON value in which sizes that grow with the batch are written `2B`."""
    if isinstance(value, dict) and value.keys() == {"B", "plus"}:
        return f"{value['B']}B"
    if isinstance(value, list):
        return "[" + ", ".join(str(_value(entry)) for entry in value) + "]"
    return value
