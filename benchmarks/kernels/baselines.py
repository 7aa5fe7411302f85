"""The same op in the libraries that people use: torch, ONNX Runtime and OpenVINO, one call each, on this CPU.

Each is given its favourite form: torch channels-last, ONNX Runtime's integer convolution channels-last
(com.microsoft.QLinearConv) and its integer product with float results (MatMulIntegerToFloat), OpenVINO integer codes in
and DequantizeLinear behind. Inputs and outputs are bound before, so that nothing is copied or allocated by the caller.
A one-op graph of ONNX Runtime's float convolution reorders its input and output, which a whole model does once only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TORCH, ORT, ORT_INT8, OPENVINO, OPENVINO_INT8 = (
    *("torch float32", "onnxruntime float32", "onnxruntime int8"),
    *("openvino float32", "openvino int8"),
)
NAMES = (TORCH, ORT, ORT_INT8, OPENVINO, OPENVINO_INT8)
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Baseline:
    """One competitor, ready to run.

    Attributes:
        run: one call.
        result: what the last call gave, as the reference lays it out, or None where it is not comparable.
    """

    run: Callable[[], Any]
    result: Callable[[], Any]


@dataclass(frozen=True)
class Missing:
    """A competitor that cannot be measured, and why, in words."""

    reason: str


def baselines(op: str, inputs: Inputs, threads: int, wanted: tuple[str, ...] = NAMES) -> dict[str, Baseline | Missing]:
    """The competitors of one call of an op.

    Args:
        op: one of `shapes.OPS`.
        inputs: arguments of the op's reference, and of a product `y_peak`, the first sample's largest result, which
            makes the output scale of an engine with integer outputs. A library has one step's tables, those of the
            first sample.
        threads: of each.
        wanted: names out of `NAMES`.
    """
    found: dict[str, Baseline | Missing] = {}
    for name in wanted:
        library, _, kind = name.partition(" ")
        if kind == "int8" and not op.startswith("int_"):
            continue  # the float graph's last node quantizes already
        try:
            if library == "torch":
                found[name] = torch_baseline(op, inputs, threads)
            else:
                model = onnx_model(op, inputs, library=library, integer=kind == "int8")
                feed = first_feed(op, inputs, library=library, integer=kind == "int8")
                run = ort_baseline if library == "onnxruntime" else openvino_baseline
                channels_last = kind == "int8" or library == "openvino"
                found[name] = run(model, feed, threads, shaper(op, channels_last, inputs.get("y_peak", 0.0)))
        except Exception as error:  # an optional library, or one that refuses the shape: named, never fatal
            found[name] = Missing(str(error).strip().splitlines()[0][:200])
    return found


def shaper(op: str, channels_last: bool, y_peak: float) -> Callable[[Any], Any]:
    """Function from a library's result to the reference's layout; None for codes whose scale is not known."""

    def shaped(y: Any) -> Any:
        if y.dtype == np.uint8:
            return (y.astype(np.float32) - 128) * np.float32(y_peak / 127) if y_peak else None
        return y.transpose(0, 2, 3, 1) if op == "int_conv2d" and not channels_last else y

    return shaped


def tables(inputs: Inputs) -> tuple[Any, int]:
    """Scale and stored zero code of the first sample."""
    row = int(inputs["step"][0]) if len(inputs["scale"]) > 1 else 0
    return np.float32(inputs["scale"][row]), int(inputs["zero_point"][row]) - inputs["q_min"]


def float_values(inputs: Inputs) -> tuple[Any, Any]:
    """What codes and weights stand for, float32, in the reference's layout."""
    scale, zero = tables(inputs)
    weights = inputs["weights"].astype(np.float32)
    weights *= inputs["weight_scale"].reshape(-1, *[1] * (weights.ndim - 1))
    return (inputs["codes"].astype(np.float32) - np.float32(zero)) * scale, weights


def quantizer_of(inputs: Inputs) -> Any:
    """The first quantizer of an op that writes codes, or None."""
    outputs = inputs.get("outputs") or [inputs.get("quantizer") or inputs.get("output")]
    return outputs[0]


def first_feed(op: str, inputs: Inputs, *, library: str, integer: bool) -> Any:
    """The array a graph of `onnx_model` takes."""
    if not op.startswith("int_"):
        x = inputs["x"]
        return np.ascontiguousarray(x.transpose(0, 2, 1)) if op == "group_norm_silu_quantize" else x
    value = np.ascontiguousarray(inputs["codes"]) if integer else float_values(inputs)[0]
    if op == "int_conv2d" and not integer and library == "onnxruntime":
        return np.ascontiguousarray(value.transpose(0, 3, 1, 2))
    return value


def torch_baseline(op: str, inputs: Inputs, threads: int) -> Baseline:
    """Torch in eager mode; of an op that writes codes also the rounding to uint8."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    kept: dict[str, Any] = {}
    if op.startswith("int_"):
        x, weights = float_values(inputs)
        bias = torch.from_numpy(inputs["bias"])
        if op == "int_linear":
            a, b = torch.from_numpy(x), torch.from_numpy(weights)
            call = lambda: F.linear(a, b, bias)  # noqa: E731 - one of several
            shape = lambda y: y.numpy()  # noqa: E731
        else:
            last = torch.channels_last
            a = torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=last)
            b = torch.from_numpy(weights.transpose(0, 3, 1, 2)).contiguous(memory_format=last)
            window = {"stride": inputs["stride"], "padding": inputs["padding"], "dilation": inputs["dilation"]}
            call = lambda: F.conv2d(a, b, bias, **window)  # noqa: E731
            shape = lambda y: y.permute(0, 2, 3, 1).numpy()  # noqa: E731
    else:
        call, shape = torch_codes(op, inputs), lambda y: None

    def run() -> None:
        with torch.inference_mode():
            kept["y"] = call()

    return Baseline(run, lambda: shape(kept["y"]))


def torch_codes(op: str, inputs: Inputs, **place: Any) -> Callable[[], Any]:
    """Function that runs an op that writes codes in torch, its arrays moved by `place` (device, dtype) first."""
    import torch
    from torch.nn import functional as F

    quantizer, x = quantizer_of(inputs), torch.from_numpy(inputs["x"]).to(**place)
    row = quantizer.row(int(inputs["step"][0]))
    m = torch.from_numpy(quantizer.pre * quantizer.inverse_scale[row]).to(**place)
    zero, span = float(quantizer.zero_point[row]) - quantizer.q_min, float(quantizer.q_max - quantizer.q_min)
    gamma, beta = (
        None if inputs.get(name) is None else torch.from_numpy(inputs[name]).to(**place) for name in ("gamma", "beta")
    )

    def codes(y: Any) -> Any:
        return (y * m).round_().add_(zero).clamp_(0.0, span).to(torch.uint8)

    if op == "quantize":
        return lambda: codes(x)
    if op == "layer_norm_quantize":
        return lambda: codes(F.layer_norm(x, x.shape[-1:], gamma, beta, inputs["eps"]))
    if op == "geglu_quantize":

        def geglu() -> Any:
            value, gate = x.chunk(2, dim=-1)
            return codes(value * F.gelu(gate))

        return geglu
    batch, rows, channels = x.shape
    side = round(rows**0.5)
    image = x.reshape(batch, side, rows // side, channels).permute(0, 3, 1, 2)

    def group_norm() -> Any:
        y = F.group_norm(image, inputs["groups"], gamma, beta, inputs["eps"])
        y = F.silu(y) if inputs["silu"] else y
        return codes(y.permute(0, 2, 3, 1))

    return group_norm


def onnx_model(op: str, inputs: Inputs, *, library: str, integer: bool) -> bytes:
    """A graph of the one op, named x and y outside; of an op that writes codes with its quantizer."""
    import onnx
    from onnx import helper

    nodes, arrays = (_product_nodes if op.startswith("int_") else _code_nodes)(op, inputs, library, integer)
    types = {np.dtype(np.uint8): onnx.TensorProto.UINT8, np.dtype(np.float32): onnx.TensorProto.FLOAT}
    feed = first_feed(op, inputs, library=library, integer=integer)
    out = onnx.TensorProto.UINT8 if nodes[-1].op_type in ("QuantizeLinear", "QLinearConv") else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        op,
        [helper.make_tensor_value_info("x", types[feed.dtype], feed.shape)],
        [helper.make_tensor_value_info("y", out, None)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in arrays.items()],
    )
    if library == "openvino" and integer:  # it looks for integer layers only where some value is quantized in the graph
        graph.node.append(helper.make_node("QuantizeLinear", ["spark", "x_s", "x_z"], ["spark_q"]))
        graph.node.append(helper.make_node("DequantizeLinear", ["spark_q", "x_s", "x_z"], ["spark_y"]))
        graph.input.append(helper.make_tensor_value_info("spark", onnx.TensorProto.FLOAT, [1]))
        graph.output.append(helper.make_tensor_value_info("spark_y", onnx.TensorProto.FLOAT, [1]))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def _product_nodes(op: str, inputs: Inputs, library: str, integer: bool) -> tuple[list[Any], dict[str, Any]]:
    from onnx import helper

    scale, zero = tables(inputs)
    weights, bias = inputs["weights"], inputs["bias"]
    conv = op == "int_conv2d"
    arrays: dict[str, Any] = {"bias": bias}
    window = {}
    if conv:
        window = {"strides": inputs["stride"], "pads": [*inputs["padding"]] * 2, "dilations": inputs["dilation"]}
        order: Any = (0, 3, 1, 2)
    else:
        order = (1, 0)
    if not integer:
        arrays["w"] = float_values(inputs)[1].transpose(order)
    elif library == "openvino":
        arrays |= {"x_s": scale, "x_z": np.uint8(zero), "w_q": weights.transpose(order)}
        arrays |= {"w_s": inputs["weight_scale"], "w_z": np.zeros(len(weights), np.int8)}
    if integer and library == "onnxruntime":
        arrays |= {"x_s": scale, "x_z": np.uint8(zero), "w": weights.transpose(order)}
        arrays |= {"w_s": inputs["weight_scale"], "w_z": np.zeros(len(weights), np.int8)}
        if not conv:
            names = ["x", "w", "x_s", "w_s", "x_z", "w_z", "bias"]
            return [helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")], arrays
        arrays["bias"] = np.rint(bias / (scale * inputs["weight_scale"])).clip(-(2**30), 2**30).astype(np.int32)
        arrays |= {"y_s": np.float32(inputs["y_peak"] / 127), "y_z": np.uint8(128)}
        names = ["x", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z", "bias"]
        node = helper.make_node("QLinearConv", names, ["y"], domain="com.microsoft", channels_last=1, **window)
        return [node], arrays
    nodes, x, y = [], "x", "y"
    if integer:
        nodes.append(helper.make_node("DequantizeLinear", ["x", "x_s", "x_z"], ["x_f"]))
        nodes.append(helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], axis=0 if conv else 1))
        x = "x_f"
    if not conv:
        nodes.append(helper.make_node("MatMul", [x, "w"], ["product"]))
        return [*nodes, helper.make_node("Add", ["product", "bias"], ["y"])], arrays
    if library == "openvino":
        nodes.append(helper.make_node("Transpose", [x], ["x_first"], perm=[0, 3, 1, 2]))
        x, y = "x_first", "y_first"
    nodes.append(helper.make_node("Conv", [x, "w", "bias"], [y], **window))
    if library == "openvino":
        nodes.append(helper.make_node("Transpose", [y], ["y"], perm=[0, 2, 3, 1]))
    return nodes, arrays


def _code_nodes(op: str, inputs: Inputs, library: str, integer: bool) -> tuple[list[Any], dict[str, Any]]:
    from onnx import helper

    quantizer = quantizer_of(inputs)
    row = quantizer.row(int(inputs["step"][0]))
    pre = quantizer.pre[:, None] if op == "group_norm_silu_quantize" else quantizer.pre
    arrays = {
        "pre": pre,
        "s": np.float32(1.0) / np.float32(quantizer.inverse_scale[row]),
        "z": np.uint8(int(quantizer.zero_point[row]) - quantizer.q_min),
    }
    nodes, y = [], "x"
    if "gamma" in inputs:
        arrays |= {"gamma": inputs["gamma"], "beta": inputs["beta"]}
        form: dict[str, Any] = {"epsilon": float(inputs["eps"])}
        kind = "LayerNormalization"
        if op == "group_norm_silu_quantize":
            kind, form["num_groups"] = "GroupNormalization", inputs["groups"]
        nodes.append(helper.make_node(kind, ["x", "gamma", "beta"], ["normed"], **form))
        y = "normed"
        if inputs.get("silu"):
            nodes.append(helper.make_node("Sigmoid", ["normed"], ["sigmoid"]))
            nodes.append(helper.make_node("Mul", ["normed", "sigmoid"], ["silu"]))
            y = "silu"
    if op == "geglu_quantize":
        nodes.append(helper.make_node("Split", ["x"], ["value", "gate"], axis=-1, num_outputs=2))
        nodes.append(helper.make_node("Gelu", ["gate"], ["gelu"]))
        nodes.append(helper.make_node("Mul", ["value", "gelu"], ["geglu"]))
        y = "geglu"
    nodes.append(helper.make_node("Mul", [y, "pre"], ["scaled"]))
    return [*nodes, helper.make_node("QuantizeLinear", ["scaled", "s", "z"], ["y"])], arrays


def ort_baseline(model: bytes, feed: Any, threads: int, shape: Callable[[Any], Any]) -> Baseline:
    """A session with bound arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (first,) = session.run(None, {"x": feed})
    given, taken = (onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in (feed, first))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", taken)
    keep = (feed, first)
    return Baseline(lambda: session.run_with_iobinding(binding), lambda: shape(taken.numpy()) if keep else None)


def check_integer_kernel(compiled: Any) -> None:
    """Refuse a compiled graph whose product does not run in int8.

    Raises:
        RuntimeError: naming the kernel that does.
    """
    facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    kernels = [
        str(info["primitiveType"].astype(str))
        for info in facts
        if str(info["layerType"].astype(str)) in ("Convolution", "FullyConnected", "MatMul")
    ]
    if not kernels or not all(kernel.endswith("I8") for kernel in kernels):
        raise RuntimeError(f"runs on {', '.join(kernels) or 'no kernel'}, not in int8")


def openvino_baseline(model: bytes, feed: Any, threads: int, shape: Callable[[Any], Any]) -> Baseline:
    """An inference request with a shared input."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(feed, shared_memory=True))
    if len(compiled.inputs) > 1:
        check_integer_kernel(compiled)
        request.set_input_tensor(1, openvino.Tensor(np.zeros(1, np.float32)))

    def result(shared: Any = feed) -> Any:  # the tensor does not keep the array it shares
        y = request.get_output_tensor(0).data
        return shape(np.array(y)) if shared is not None else None

    return Baseline(request.infer, result)
