"""What the hash check costs when an engine of about a gigabyte is opened.

Run with a folder for the file:

    python -m benchmarks.unets.hash_check FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.onnx_file import read_manifest, write_onnx
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.open_engine import open_engine

PRODUCTS, WIDTH = 13, 4096
ROUNDS = 3


def write_large(path: Path) -> None:
    """Write a stack of float products, 832 MiB of weights in a data file, as an engine file."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    rng = np.random.default_rng(0)
    x = value = ir.Value(name="x", type=kind, shape=ir.Shape(["B", WIDTH]))
    nodes, weights = [], []
    for index in range(PRODUCTS):
        array = ir.tensor(rng.standard_normal((WIDTH, WIDTH), np.float32), name=f"w{index}")
        weights.append(ir.Value(name=f"w{index}", type=kind, shape=ir.Shape([WIDTH, WIDTH]), const_value=array))
        nodes.append(ir.node("MatMul", [value, weights[-1]]))
        value = nodes[-1].outputs[0]
        value.name, value.type, value.shape = f"y{index}", kind, ir.Shape(["B", WIDTH])
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="large")
    manifest = EngineManifest(
        target="onnxruntime",
        mode="exact",
        model_config={},
        scheduler_config=None,
        inputs=(),
        outputs=(),
        timesteps=(0.0,),
        step_edges=(),
        layers=(),
    )
    write_onnx(ir.Model(graph, ir_version=10), path, manifest)


def main() -> None:
    """Print the seconds that reading the manifest and opening take, with the check and without, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the engine file lies, or is written the first time")
    path = parser.parse_args().folder / "large.onnx"
    if not path.is_file():
        write_large(path)
    for check in (False, True) * ROUNDS:
        start = time.perf_counter()
        read_manifest(path, hash_check=check)
        read = time.perf_counter()
        open_engine(path, threads=2, hash_check=check).close()
        done = time.perf_counter()
        print(f"hash check {check!s:5}: manifest {read - start:.3f} s, open {done - read:.2f} s", flush=True)


if __name__ == "__main__":
    main()
