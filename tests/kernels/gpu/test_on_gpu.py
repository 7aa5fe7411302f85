"""What only a GPU can show; skipped without one, and never run so far."""

import importlib
import os

import numpy as np
import pytest
import torch
from dq_kernels.gpu.ahead_of_time.shapes import FLOAT_OPS, PRODUCT_OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set"),
]
GPU = torch.device("cuda", 0)


def cases_of(op):
    for case in importlib.import_module(f"dq_kernels.{op}.cases").TEST_CASES:
        if op in PRODUCT_OPS:
            yield from ((op, case, bits) for bits in ((8, 4) if case.weight_bits <= 4 else (8,)))
        elif "no codes" not in case.name:
            yield op, case, 0


ALL = [
    pytest.param(*one, id=f"{one[0]}-{one[1].name}-{one[2]}") for op in FLOAT_OPS + PRODUCT_OPS for one in cases_of(op)
]


@pytest.mark.parametrize(("op", "case", "bits"), ALL)
def test_codes_and_accumulators_are_those_of_the_reference(op, case, bits):
    from dq_kernels.gpu.launch.launching import architecture_for
    from dq_kernels.gpu.tune.configurations import BlockConfiguration, choose
    from dq_kernels.gpu.tune.tuning import problem_of

    problem = problem_of(op, case, bits, torch.float32, GPU)
    default = choose(op, architecture_for(torch.empty(1, device=GPU)), problem.facts)
    tried = [default]
    if op == "group_norm_silu_quantize":
        tried = [BlockConfiguration(elements=1024, warps=4, form=form) for form in ("whole", "split", "resident")]
    for configuration in tried:
        problem.check(configuration)
        assert problem.right(), configuration


def linear_on_gpu(case, dtype):
    """Launch, its y, the step tensor and the reference's y for a step."""
    from dq_kernels.gpu.launch import launching as launch
    from dq_kernels.gpu.launch.product_calls import Epilogue
    from dq_kernels.gpu.launch.weights import make_quantizer, make_weights
    from dq_kernels.int_linear.reference import int_linear
    from dq_kernels.quantize.reference import signed_codes

    inputs = case.inputs()
    codes = torch.from_numpy(signed_codes(inputs["codes"])).to(GPU)
    weights = launch.to_device(make_weights(inputs["weights"], inputs["weight_scale"], bits=8), GPU)
    names = ("scale", "zero_point", "q_min", "q_max")
    quantizer = launch.to_device(make_quantizer(**{name: inputs[name] for name in names}), GPU)
    step = torch.from_numpy(inputs["step"]).to(GPU)
    y = torch.zeros(*codes.shape[:2], len(inputs["weights"]), dtype=dtype, device=GPU)
    extras = ("bias", "row", "residual", "previous")
    arrays = {n: torch.from_numpy(inputs[n]).to(GPU) for n in extras if inputs[n] is not None}

    def run():
        launch.int_linear(codes, weights, quantizer, step, Epilogue(y=y, **arrays))

    def expected(new_step):
        return torch.from_numpy(int_linear(**inputs | {"step": new_step})[0]).to(dtype)

    return run, y, step, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_captured_graph_follows_the_step_in_device_memory(dtype):
    from dq_kernels.int_linear.cases import TEST_CASES

    run, y, step, expected = linear_on_gpu(TEST_CASES[1], dtype)
    run()
    assert torch.equal(y.cpu(), expected(step.cpu().numpy()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    for new in ([0, 1, 2], [2, 2, 0]):
        step.copy_(torch.tensor(new, dtype=torch.int32))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y.cpu(), expected(np.array(new, np.int32)))


def test_a_cubin_launched_through_the_driver_gives_the_same_codes(tmp_path):
    from dataclasses import replace

    from dq_kernels.gpu.ahead_of_time.compile import compile_call, store
    from dq_kernels.gpu.ahead_of_time.cubins import CubinStore, DeviceArray
    from dq_kernels.gpu.launch import launching as launch
    from dq_kernels.gpu.launch.calls import dtype_name
    from dq_kernels.gpu.launch.float_calls import CodeOutput, quantize_calls
    from dq_kernels.gpu.launch.weights import make_quantizer
    from dq_kernels.gpu.tune.configurations import BlockConfiguration

    ones = np.ones(32, np.float32)
    made = make_quantizer(
        pre=ones, inverse_scale=ones[:1] * 20, zero_point=np.full(1, 128, np.int32), q_min=0, q_max=255
    )
    quantizer, x = launch.to_device(made, GPU), torch.randn(2, 50, 32, device=GPU)
    step, codes = torch.zeros(2, dtype=torch.int32, device=GPU), torch.zeros(2, 50, 32, dtype=torch.int8, device=GPU)
    (call,) = quantize_calls(
        x,
        step,
        CodeOutput(quantizer=quantizer, codes=codes),
        configuration=BlockConfiguration(elements=1024, warps=4),
    )
    architecture = launch.architecture_for(x)
    store([compile_call(call, architecture)], tmp_path)
    arrays = {
        name: DeviceArray(tuple(value.shape), dtype_name(value), value.data_ptr())
        for name, value in call.arguments.items()
        if isinstance(value, torch.Tensor)
    }
    cubins = CubinStore(tmp_path, architecture)
    cubins.launch(replace(call, arguments={**call.arguments, **arrays}), torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(codes, launch.quantize(x, step, quantizer))
    cubins.close()
