"""A plan of TensorRT-RTX tells its products, and a damaged or foreign file tells nothing and breaks nothing."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dq_deploy.engines.tensorrt.plan.symbols import Size, SymbolTable, product_of
from dq_deploy.engines.tensorrt.plan.text import fields_of, nodes_listed, read_plan_text
from dq_deploy.errors import FileProblemError
from tests.engines.tensorrt.rtx_plans import build_plans, convolution, linears, needs_builder, weight_only

INTEGER, FLOAT, HALF = ("int8", "int8"), ("float", "float"), ("half", "half")


def dynamic(*rest: int) -> dict[str, list[list[int]]]:
    return {"x": [[b, *rest] for b in (1, 2, 8)]}


@pytest.fixture(scope="module")
def plans(made_once) -> Path:
    """Folder of plans: fixed.plan, dynamic.plan, conv.plan, wo.plan."""

    def make(folder: Path) -> None:
        folder.mkdir()
        one, three = ["SM80"], ["SM80", "SM89", "SM120"]
        jobs = [
            (linears(folder / "fixed.onnx", 2), one, {}),
            (linears(folder / "dynamic.onnx", "B"), three, dynamic(7, 64)),
            (convolution(folder / "conv.onnx", "B"), one, dynamic(16, 8, 8)),
            (weight_only(folder / "wo.onnx", "B"), three, dynamic(64, 32)),
        ]
        build_plans(
            [{"onnx": str(o), "plan": str(o.with_suffix(".plan")), "capabilities": c, "profile": p} for o, c, p in jobs]
        )

    return made_once("rtx-plans", make)


def named(told, node):
    """The one product of a node."""
    (product,) = [p for p in told.products if node in p.nodes]
    return product


@needs_builder
def test_integer_and_float_products_are_told_apart_with_their_sizes(plans):
    told = read_plan_text(plans / "fixed.plan")
    assert (told.problem, told.version, told.accelerators) == ("", "1.7.1.116", ("sm80",))
    first, second, third = (named(told, f"{name}/product") for name in ("first", "second", "third"))
    assert [p.operands for p in (first, second, third)] == [INTEGER, FLOAT, INTEGER]
    assert [(p.m.number, p.n.number, p.k.number) for p in (first, second, third)] == [
        (14, 96, 64), (14, 40, 96), (14, 24, 40)
    ]  # fmt: skip


@needs_builder
def test_products_that_share_codes_are_merged_and_named_after_all_their_nodes(plans):
    merged = named(read_plan_text(plans / "fixed.plan"), "k/product")
    assert set(merged.nodes) == {"q/product", "k/product", "v/product"}
    assert (merged.operands, merged.n.number, merged.k.number) == (INTEGER, 48, 24)


@needs_builder
def test_rows_of_a_dynamic_batch_are_a_number_times_it_on_every_architecture(plans):
    told = read_plan_text(plans / "dynamic.plan")
    assert told.accelerators == ("sm80", "sm89", "sm120")
    for node in ("first/product", "third/product", "q/product"):
        product = named(told, node)
        assert (product.m.factor, len(product.m.symbols), product.operands) == (7, 1, INTEGER)
        assert product.accelerators == told.accelerators


@needs_builder
def test_a_convolution_has_its_geometry_and_an_attention_product_its_batch(plans):
    told = read_plan_text(plans / "conv.plan")
    product = named(told, "conv/product")
    shape = product.convolution
    assert (product.kind, product.operands, shape.n, shape.c, shape.groups) == ("conv", INTEGER, 32, 16, 1)
    assert (shape.kernel, shape.stride, shape.padding, shape.dilation) == ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
    assert [d.number for d in (*shape.spatial, *shape.spatial_out)] == [8, 8, 4, 4]
    attention = named(told, "attention")
    assert attention.batch != Size.of(1)
    assert attention.operands == FLOAT


@needs_builder
def test_four_bit_weight_only_products_are_float_inside_their_fusion(plans):
    told = read_plan_text(plans / "wo.plan")
    product = named(told, "wo/product")
    assert product.operands == HALF
    assert product.fusion in {kernel.name for kernel in told.kernels if kernel.compiled}
    assert product.accelerators == ("sm80", "sm89", "sm120")


@needs_builder
def test_four_bit_weights_are_unpacked_by_a_kernel_in_front_of_an_int8_product(plans):
    told = read_plan_text(plans / "fixed.plan")
    assert any("int4" in kernel.inputs and "int8" in kernel.outputs for kernel in told.kernels)


@needs_builder
@pytest.mark.parametrize("version", [(1, 7, 1, 117), (1, 6, 0, 0), (2, 0, 0, 0)])
def test_a_plan_of_another_version_tells_nothing(plans, tmp_path, version):
    data = bytearray((plans / "fixed.plan").read_bytes())
    data[0x18:0x1C] = bytes(version)
    (tmp_path / "other.plan").write_bytes(data)
    told = read_plan_text(tmp_path / "other.plan")
    assert told.version == ".".join(map(str, version))
    assert "only studied for 1.7.1.116" in told.problem
    assert (told.products, told.kernels) == ((), ())


@needs_builder
def test_truncated_plans_tell_nothing(plans, tmp_path):
    data = (plans / "fixed.plan").read_bytes()
    for size in (0, 1, 27, 0x28, 0x100, 4000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.plan").write_bytes(data[:size])
        told = read_plan_text(tmp_path / "cut.plan")
        assert told.problem
        assert not told.products
        if size >= 0x28:  # the same, pretending to be whole
            cut = bytearray(data[:size])
            struct.pack_into("<Q", cut, 0x10, size)
            (tmp_path / "cut.plan").write_bytes(cut)
            told = read_plan_text(tmp_path / "cut.plan")
            assert told.problem or size > len(data) // 4


@needs_builder
def test_damaged_text_never_breaks_the_reader_nor_makes_a_float_product_integer(plans, tmp_path):
    data = (plans / "fixed.plan").read_bytes()
    start = data.index(b"header {\n")
    (length,) = struct.unpack_from("<Q", data, start - 8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(start, start + length, 40):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "bad.plan").write_bytes(damaged)
        told = read_plan_text(tmp_path / "bad.plan")
        second = [p for p in told.products if p.nodes == ("second/product",)]
        assert all(p.operands != INTEGER for p in second)


def test_random_bytes_and_other_files_tell_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for content in (b"", b"noise" * 99, rng.bytes(100_000), b"ftrt" + rng.bytes(4000), b"vtrt\0\0\0\0" + rng.bytes(99)):
        (tmp_path / "x.plan").write_bytes(content)
        told = read_plan_text(tmp_path / "x.plan")
        assert told.problem
        assert not told.products
    with pytest.raises(FileProblemError, match=r"cannot read plan .*gone\.plan: No such file"):
        read_plan_text(tmp_path / "gone.plan")


def crafted(text: bytes, *, claimed: int | None = None, size: int | None = None) -> bytes:
    """A file with the marks of a plan around any text."""
    length = len(text) if claimed is None else claimed
    body = b"NLYM\xa1\xda\x1e\0" + struct.pack("<Q", length) + text
    total = 0x28 + len(body) if size is None else size
    return b"vtrt\0\0\0\0" + struct.pack("<QQ", 2, total) + bytes((1, 7, 1, 116)) + bytes(12) + body


HEAD = b"header {\n  accelerators={sm80 }\n}\n"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (crafted(HEAD, claimed=1 << 62), "claims 4611686018427387904 bytes"),
        (crafted(b"header {\n}\n"), "does not say what it is for"),
        (crafted(b"other {\n}\n"), "no program was found"),
        (crafted(HEAD.replace(b"sm80", b"*")), "in front of the program it belongs to"),
        (crafted(HEAD + b'  fully_connected={ name="a" input={"x" } output={"y" } }\n'), "lacks operands"),
        (crafted(HEAD + b"  mul={ " + b"a" * (5 << 20) + b"}\n"), "a line of the plan's text has"),
    ],
)
def test_hostile_text_is_named(tmp_path, data, problem):
    (tmp_path / "x.plan").write_bytes(data)
    told = read_plan_text(tmp_path / "x.plan")
    assert problem in told.problem
    assert not told.products


def test_sizes_that_refer_to_each_other_in_a_circle_are_unknown(tmp_path):
    text = HEAD + (
        b'  mul={ output={"a" } input={"b" "b" } }\n  mul={ output={"b" } input={"a" "a" } }\n'
        b'  tensor={ dims={ "a" 8 } name="x" type=int8 }\n  tensor={ dims={ 8 4 } name="w" type=int8 }\n'
        b'  fully_connected={ name="n" input={"x" "w" } output={"x" } trA=false trB=false layers="[ONNX Layer: n]" }\n'
    )
    (tmp_path / "x.plan").write_bytes(crafted(text))
    started = time.perf_counter()
    (product,) = read_plan_text(tmp_path / "x.plan").products
    assert time.perf_counter() - started < 5
    assert (product.m, product.n, product.k) == (Size.unknown(), Size.of(4), Size.of(8))


def test_large_weights_cost_neither_memory_nor_much_time(tmp_path):
    path, size = tmp_path / "large.plan", 1 << 28
    text = HEAD + (
        b'  tensor={ dims={ 2 8 } name="x" type=int8 }\n  tensor={ dims={ 8 4 } name="w" type=int8 }\n'
        b'  fully_connected={ name="n" input={"x" "w" } output={"x" } trA=false trB=false layers="[ONNX Layer: n]" }\n'
    )
    with path.open("wb") as stream:
        stream.write(crafted(text, size=size))
        stream.truncate(size)
    tracemalloc.start()
    started = time.perf_counter()
    told = read_plan_text(path)
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [p.operands for p in told.products] == [INTEGER]
    assert peak < 8 << 20
    assert seconds < 20


def test_fields_keep_quoted_braces_and_flatten_nested_ones():
    fields = fields_of('name="a {b} c" dims={ "s{1}" 8 } cond = { grid = { 4 1 1 } run = f } type=int8 } type=float')
    assert fields == {
        "name": "a {b} c",
        "dims": ["s{1}", "8"],
        "cond": ["grid", "4", "1", "1", "run", "f"],
        "type": "int8",
    }
    assert nodes_listed("[ONNX Layer: a/b]\x1f[ONNX Layer: c [d]]\x1e[ONNX Layer: a/b]") == ("a/b", "c [d]")


def test_sizes_multiply_and_resolve():
    table = SymbolTable()
    table.add("memset", ["seven"], [], "7i64")
    table.add("mul", ["m"], ["batch", "seven"], "")
    table.add("copy", ["proxy"], ["m"], "")
    table.add("max", ["p"], ["batch", "__s^0i64"], "")
    table.add("sub", ["d"], ["batch", "seven"], "")
    assert table.size("proxy") == Size(7, ("batch",))
    assert table.size("p") == Size(1, ("batch",))
    assert table.size("d") == Size.unknown()
    assert product_of([Size.of(3), table.size("m"), Size.of(2)]) == Size(42, ("batch",))
    assert product_of([Size.of(3), Size.unknown()]) == Size.unknown()
