"""What ONNX Runtime's own operators take at the shapes of convolutions, and where the time of a graph goes.

    python -m benchmarks.kernels.graph_operators
    python -m benchmarks.kernels.graph_operators --profile unet.onnx

The first prints microseconds of each way to compute a convolution, the second a file's nodes and time by operator.
Nothing here is part of the export: decision 27 rests on these numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

SHAPES = ((32, 32), (32, 64), (16, 64), (16, 128), (8, 128), (4, 128), (32, 128), (16, 256))
"""Height and width, and channels in and out, of convolutions 3x3."""
CONTRIB = "com.microsoft"
Array = NDArray[np.generic]


def model_of(nodes: Sequence[NodeProto], inputs: Mapping[str, Array], constants: Mapping[str, Array]) -> bytes:
    """A model whose only output is that of the last node."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "operators",
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in inputs.items()],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)]
    written: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return written


def session_of(model: bytes | str, threads: int, profile: str | None = None) -> onnxruntime.InferenceSession:
    """A session with all optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def microseconds(model: bytes, feeds: Mapping[str, Array], threads: int, runs: int = 200) -> float:
    """Median of a run with bound inputs."""
    session = session_of(model, threads)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output(session.get_outputs()[0].name)
    taken = []
    for _ in range(runs + 20):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[20:])) * 1e6


def patch_index(size: int) -> NDArray[np.int64]:
    """Pixels of the patches of a 3x3 window with padding 1; size * size stands for padding."""
    y, x, i, j = np.ogrid[0:size, 0:size, 0:3, 0:3]
    rows, columns = y + i - 1, x + j - 1
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return np.where(inside, rows * size + columns, size * size).reshape(-1)


def convolution(size: int, channels: int, threads: int) -> dict[str, float]:
    """Microseconds of each way to compute one convolution, and of what stands around it."""
    random = np.random.default_rng(0)
    pixels = size * size
    padded = random.integers(0, 255, (1, pixels + 1, channels)).astype(np.uint8)
    rows = random.integers(0, 255, (1, pixels, 9 * channels)).astype(np.uint8)
    image = random.integers(0, 255, (1, channels, size, size)).astype(np.uint8)
    small = random.integers(-8, 8, (channels, channels, 3, 3)).astype(np.int8)
    found: dict[str, float] = {}

    def timed(name: str, node: NodeProto, inputs: Mapping[str, Array], constants: Mapping[str, Array]) -> None:
        found[name] = microseconds(model_of([node], inputs, constants), inputs, threads)

    gather = helper.make_node("Gather", ["x", "i"], ["y"], axis=1)
    timed("gather", gather, {"x": padded}, {"i": patch_index(size)})
    for kind, weight, zero in (
        ("s8", small, np.int8(0)),
        ("u8", (small.astype(int) + 128).astype(np.uint8), np.uint8(128)),
    ):
        shared = {"za": np.asarray(np.uint8(20)), "zb": np.asarray(zero)}
        product = helper.make_node("MatMulIntegerToFloat", ["x", "w", "1", "1", "za", "zb"], ["y"], domain=CONTRIB)
        matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(9 * channels, channels))
        timed(f"product u8 x {kind}", product, {"x": rows}, {"w": matrix, "1": np.asarray(np.float32(1)), **shared})
        conv = helper.make_node("ConvInteger", ["x", "w", "za", "zb"], ["y"], pads=[1] * 4, kernel_shape=[3, 3])
        timed(f"ConvInteger u8 x {kind}", conv, {"x": image}, {"w": weight, **shared})
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, kernel_shape=[3, 3])
    timed("float Conv", conv, {"x": image.astype(np.float32)}, {"w": small.astype(np.float32)})
    multiply = helper.make_node("Mul", ["x", "f"], ["y"])
    for name, shape, factor in (
        ("factor along channels", (1, pixels, channels), (1, 1, channels)),
        ("factor along pixels", (1, channels, pixels), (1, channels, 1)),
    ):
        values = {"x": random.standard_normal(shape).astype(np.float32)}
        timed(name, multiply, values, {"f": random.standard_normal(factor).astype(np.float32)})
    return found


def feeds_of(session: onnxruntime.InferenceSession, size: int) -> dict[str, Array]:
    """Batch 1: noise for images, 3 for anything else; sizes that vary are `size`."""
    random = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 if axis == 0 else size for axis, d in enumerate(value.shape)]
        dtype = {"tensor(float)": np.float32, "tensor(int32)": np.int32}.get(value.type, np.int64)
        feeds[value.name] = random.standard_normal(shape).astype(dtype) if len(shape) > 1 else np.full(shape, 3, dtype)
    return feeds


def profile(path: str, size: int, threads: int, runs: int = 20) -> list[tuple[str, int, float]]:
    """Operator, nodes and milliseconds of one run of a file, the longest first; the profiler adds to every node."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(path, threads, f"{folder}/profile")
        feeds = feeds_of(session, size)
        for _ in range(runs + 5):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    begun = [event["ts"] for event in events if event["name"] == "model_run"][5]
    nodes: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begun:
            kind = event["args"]["op_name"]
            nodes[kind] += 1
            taken[kind] += event["dur"]
    return [(kind, round(nodes[kind] / runs), dur / runs / 1000) for kind, dur in taken.most_common()]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", help="ONNX file whose operators are counted and timed")
    parser.add_argument("--size", type=int, default=32, help="height and width where they vary")
    arguments = parser.parse_args()
    if arguments.profile:
        rows = profile(arguments.profile, arguments.size, arguments.threads)
        print(f"all: {sum(row[1] for row in rows)} nodes, {sum(row[2] for row in rows):.3f} ms")
        for kind, count, taken in rows:
            print(f"{kind:28s} {count:5d} {taken:8.3f} ms")
        return
    for size, channels in SHAPES:
        found = convolution(size, channels, arguments.threads)
        print(f"{size}x{size}, {channels} channels: " + ", ".join(f"{k} {v:.0f}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
