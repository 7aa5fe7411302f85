import json
import os
import re
from dataclasses import replace

import pytest
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu import ARCHITECTURES
from dq_kernels.gpu.ahead_of_time.shapes import FLOAT_OPS, MODELS, calls_of_model, float_calls_of, product_calls_of
from dq_kernels.gpu.launch.calls import KERNELS, argument_types, key_of
from dq_kernels.gpu.tune.configurations import SHARED_BYTES
from dq_kernels.int_conv2d.cases import TEST_CASES as CONVS
from dq_kernels.int_conv2d.cases import Case as ConvCase
from dq_kernels.int_linear.cases import Case as LinearCase
from dq_kernels.layer_norm_quantize.cases import TEST_CASES as LAYER_NORMS

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing would compile"
)
# what each generation multiplies integers with
INSTRUCTION = dict.fromkeys(ARCHITECTURES, r"IMMA\.16832\.S8\.S8(\.SAT)?") | {90: r"IGMMA\.64x(64|128)x32\.S8\.S8"}
CONV = ConvCase(name="", batch=2, height=64, width=64, channels=320, out_channels=320)
LINEAR = LinearCase(name="", batch=2, rows=4096, channels=320, out_channels=320)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def representative_calls(architecture, dtype="float16"):
    """A call of each op at a shape of Stable Diffusion 1.5."""
    import importlib

    calls = []
    for op in FLOAT_OPS:
        cases = importlib.import_module(f"dq_kernels.{op}.cases").SHAPE_CASES
        calls.append(float_calls_of(op, next(c for c in reversed(cases) if c.model == "sd15"), architecture, dtype)[0])
    calls += product_calls_of("int_linear", LINEAR, architecture, dtype, 8, ("bias", "residual"))
    calls += product_calls_of("int_conv2d", CONV, architecture, dtype, 4, ("bias", "row"))
    return calls


def assert_rounds_each_step(ptx):
    assert not re.search(r"\bfma\.rn\.f32", ptx), "a product and a sum were fused"
    assert not re.search(r"\.ftz|\.approx", ptx), "subnormals are flushed or a division is approximate"


GENERATIONS = (80, 90, 100, 120)
"""The first architecture of each."""


@pytest.mark.parametrize("architecture", GENERATIONS)
def test_every_op_compiles_without_spills_and_with_integer_products(architecture):
    check_that_every_op_compiles(architecture)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {*GENERATIONS}))
def test_every_op_compiles_for_the_other_architectures_of_a_generation(architecture):
    check_that_every_op_compiles(architecture)


def check_that_every_op_compiles(architecture):
    from dq_kernels.gpu.ahead_of_time.compile import compile_call

    for call in representative_calls(architecture):
        found = compile_call(call, architecture)
        entry = found.entry
        assert (entry["spills"], entry["stack_bytes"], entry["local_bytes"]) == (0, 0, 0), entry
        assert entry["shared_bytes"] <= SHARED_BYTES[architecture]
        assert entry["registers"] <= 255
        assert_rounds_each_step(found.ptx)
        if call.kernel.startswith("int_"):
            assert entry["products"], "no integer matrix instruction"
            assert all(re.fullmatch(INSTRUCTION[architecture] + ".*", name) for name in entry["products"]), entry
            assert entry["loop_instructions"] > 0
        assert dict(entry["arguments"]) == {n: kind for n, kind in argument_types(call).items() if kind != "none"}


def test_the_kernels_between_compile_and_bfloat16_is_rounded(tmp_path):
    from dq_kernels.gpu.ahead_of_time.compile import compile_call, store, unique
    from dq_kernels.group_norm_silu_quantize.cases import SHAPE_CASES

    largest = next(case for case in SHAPE_CASES if case.name == "sd15 64x64 640")
    small = replace(LINEAR, batch=1, rows=64, channels=5120)
    calls = float_calls_of("group_norm_silu_quantize", largest, 80, "bfloat16")
    calls += product_calls_of("int_linear", small, 80, "bfloat16", 4)
    assert len(calls) == 7
    found = [compile_call(call, 80) for call in unique(calls, 80)]
    for one in found:
        assert one.entry["stack_bytes"] == 0
        assert_rounds_each_step(one.ptx)
    assert "cvt.rn.bf16" in found[-1].ptx
    index = json.loads(store(found, tmp_path).read_text())
    assert set(index["cubins"]) == {key_of(call, 80) for call in calls}
    assert {path.stem for path in tmp_path.glob("*.cubin")} == set(index["cubins"])


def test_every_shape_of_every_model_has_a_call_and_a_configuration():
    for model in MODELS:
        for architecture in ARCHITECTURES:
            calls = list(calls_of_model(model, architecture, "float16"))
            assert {call.kernel for call in calls} <= set(KERNELS)
            assert {"int_linear_kernel", "quantize_kernel"} <= {call.kernel for call in calls}


def test_integers_that_are_1_may_be_constants():
    """As Triton makes them where it launches by itself."""
    import triton
    from dq_kernels.gpu.ahead_of_time.compile import source_of
    from triton.backends.compiler import GPUTarget

    smallest = next(case for case in LAYER_NORMS if case.channels == case.rows == 1)
    for call in [
        *float_calls_of("layer_norm_quantize", smallest, 80, "float32"),
        *product_calls_of("int_conv2d", CONVS[0], 80, "float16", 4)[:1],
    ]:
        ones = {name: 1 for name, value in call.arguments.items() if isinstance(value, int) and value == 1}
        assert len(ones) > 5
        rest = {name: value for name, value in call.arguments.items() if name not in ones}
        source, _ = source_of(replace(call, arguments=rest, constants={**call.constants, **ones}))
        assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]


def test_more_shared_memory_than_there_is_is_refused():
    from dq_kernels.gpu.ahead_of_time.compile import compile_call

    call = product_calls_of("int_linear", LINEAR, 86, "float16", 8)[0]
    large = replace(call, constants={**call.constants, "BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128}, stages=6)
    with pytest.raises(KernelInputError, match="bytes of shared memory, at most 101376 are there; use smaller blocks"):
        compile_call(large, 86)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    from dq_kernels.gpu.ahead_of_time.compile import main

    assert main(["--all", "--architectures", "75", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --architectures has [75], expected some of [80, 86")
