"""A layer of a plan is integer only if its own product takes integers; what cannot be told is unknown."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.engines.tensorrt.plan.products import Convolution, Product
from dq_deploy.engines.tensorrt.plan.symbols import Size
from dq_deploy.engines.tensorrt.plan.text import read_plan_text
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.plan import read_plan_manifest
from dq_deploy.manifest.values import ManifestLayer, ManifestPart, PlanManifest, ProductShape
from dq_deploy.verify.plan.attestation import attest_plan, fixed_batch
from dq_deploy.verify.plan.matching import Matching, Wanted, fits, wanted_products
from tests.engines.tensorrt.rtx_plans import build_plans, linears, needs_builder
from tests.manifests import changed, plan_manifest
from tests.verify.plan.plan_models import KEPT


def attested(folder: Path, name: str, **changes: Any):
    """Attestation of a plan, with some of its manifest's entries changed."""
    path = folder / f"{name}.plan"
    return attest_plan(path, changed(read_plan_manifest(path), **changes))


def of(path: Path, manifest: PlanManifest) -> PlanManifest:
    """The manifest, as if it were of this plan."""
    return replace(manifest, plan_sha256=sha256_of_file(path))


def executed(told) -> dict[str, str]:
    return {layer.name: layer.executed for layer in told.layers}


@needs_builder
def test_every_layer_of_the_integer_plan_is_integer_on_every_architecture(small_plans):
    told = attested(small_plans, "int")
    assert told.problem == ""
    assert set(executed(told).values()) == {"integer"}
    assert {layer.operands for layer in told.layers} == {("int8 x int8",)}
    assert told.compute_capabilities == ("8.0", "8.9")
    assert told.integer_mac_share == sum(layer.macs for layer in told.layers) / told.macs.of_all
    assert told.kernels["integer_products"] == len(told.layers) == 23


@needs_builder
def test_the_float_model_has_no_integer_layer(small_plans):
    told = attested(small_plans, "float")
    assert told.integer_mac_share == 0
    assert set(executed(told).values()) == {"float"}
    assert {layer.requested for layer in told.layers} == {"integer"}
    assert told.kernels["integer_products"] == 0


@needs_builder
def test_one_layer_kept_float_is_exactly_one_less(small_plans):
    whole, kept = attested(small_plans, "int"), attested(small_plans, "kept")
    assert set(executed(whole)) - set(executed(kept)) == {KEPT}
    assert set(executed(kept).values()) == {"integer"}
    assert whole.macs.integer - kept.macs.integer == next(la.macs for la in whole.layers if la.name == KEPT)
    assert whole.kernels["integer_products"] - kept.kernels["integer_products"] == 1
    plan = small_plans / "kept.plan"
    asked = executed(attest_plan(plan, of(plan, read_plan_manifest(small_plans / "int.plan"))))
    assert asked.pop(KEPT) == "unknown"
    assert set(asked.values()) == {"integer"}


def all_unknown(told, reason: str) -> None:
    assert told.integer_mac_share == 0
    assert set(executed(told).values()) == {"unknown"}
    assert all(reason in layer.why for layer in told.layers)


@needs_builder
def test_a_plan_of_another_builder_version_is_all_unknown(small_plans, tmp_path):
    data = bytearray((small_plans / "int.plan").read_bytes())
    data[0x1B] += 1
    (tmp_path / "x.plan").write_bytes(data)
    manifest = read_plan_manifest(small_plans / "int.plan")
    all_unknown(attest_plan(tmp_path / "x.plan", of(tmp_path / "x.plan", manifest)), "only studied for 1.7.1.116")
    all_unknown(attested(small_plans, "int", runtime_version="1.6.0.9"), "the manifest says tensorrt-rtx 1.6.0.9")


@needs_builder
def test_random_and_truncated_plans_are_all_unknown(small_plans, tmp_path):
    manifest = read_plan_manifest(small_plans / "int.plan")
    data = (small_plans / "int.plan").read_bytes()
    for content in (b"", np.random.default_rng(0).bytes(50_000), data[:5000], data[:-1]):
        (tmp_path / "x.plan").write_bytes(content)
        all_unknown(attest_plan(tmp_path / "x.plan", of(tmp_path / "x.plan", manifest)), "")


@needs_builder
def test_a_swapped_plan_does_not_attest(small_plans, tmp_path):
    manifest = read_plan_manifest(small_plans / "int.plan")
    all_unknown(attest_plan(small_plans / "kept.plan", manifest), "the SHA-256 differs")
    job = {"onnx": str(linears(tmp_path / "l.onnx", 2)), "plan": str(tmp_path / "l.plan")}
    build_plans([{**job, "capabilities": ["SM80", "SM89"], "profile": {}}])
    other = attest_plan(tmp_path / "l.plan", of(tmp_path / "l.plan", manifest))
    assert other.problem == ""
    all_unknown(other, "no product of the plan has its name or its shape")


@needs_builder
def test_each_compute_capability_of_the_manifest_must_be_in_the_plan(small_plans):
    told = attested(small_plans, "int", compute_capabilities=["8.0", "8.6", "8.9"])
    all_unknown(told, "no program for compute capability 8.6")
    portable = attested(small_plans, "int", compute_capabilities=["8.0", "8.6"], portable=True)
    assert set(executed(portable).values()) == {"integer"}


def test_missing_plans_and_incomplete_manifests_are_errors(tmp_path):
    with pytest.raises(FileProblemError, match="does not exist"):
        attest_plan(tmp_path / "none.plan", plan_manifest())
    (tmp_path / "x.plan").write_bytes(b"x")
    macs = {"layers": {}, "of_all": 1, "of_quantizable": 1, "attention": 0}
    of_plan = plan_manifest(plan_sha256=sha256_of_file(tmp_path / "x.plan"), macs=macs, runtime="other")
    for manifest, flaw in (
        (plan_manifest(), "macs is missing"),
        (changed(of_plan, layers=[{"name": "a", "integer": True}]), r"layers\[0\]\.parts is missing"),
        (changed(of_plan, layers=[{"name": "a", "integer": True, "parts": []}]), r"macs\.layers\.a is missing"),
    ):
        with pytest.raises(FileProblemError, match=rf"incomplete \({flaw}\)"):
            attest_plan(tmp_path / "x.plan", manifest)
    told = attest_plan(tmp_path / "x.plan", of_plan)
    assert told.problem == "plans of other cannot be read"


def gemm(m: int, k: int, n: int) -> ProductShape:
    return ProductShape(kind="gemm", m=m, n=n, k=k)


def entry(name: str, *parts: tuple[str, ProductShape]) -> ManifestLayer:
    rows = tuple(ManifestPart(node=f"{node}/product", product=shape) for node, shape in parts)
    return ManifestLayer(name=name, integer=True, parts=rows)


CONV = ProductShape(
    kind="conv", n=32, c=3, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1), dilation=(1, 1), spatial=(8, 8),
    spatial_out=(4, 4),
)  # fmt: skip
FIRST, SECOND, THIRD = ("first", gemm(7, 64, 96)), ("second", gemm(7, 96, 40)), ("third", gemm(7, 40, 24))
QKV = [(name, gemm(7, 24, 16)) for name in "qkv"]


@pytest.fixture(scope="module")
def products(made_once) -> tuple[Product, ...]:
    """Products of a real plan: first, third and q, k, v integer, second float; batch 2."""

    def make(folder: Path) -> None:
        folder.mkdir()
        job = {"onnx": str(linears(folder / "l.onnx", 2)), "plan": str(folder / "l.plan")}
        build_plans([{**job, "capabilities": ["SM80"], "profile": {}}])

    return read_plan_text(made_once("linears", make) / "l.plan").products


def verdicts(products, *entries, batch: int | None = 2, copies: int = 1) -> list[str]:
    wanted = [want for e in entries for want in wanted_products(e)]
    matching = Matching(wanted=wanted, products=products, kernels=(), batch=batch, copies=copies)
    return [verdict.executed for verdict in matching.verdicts()]


@needs_builder
def test_products_are_matched_by_name_and_shape(products):
    layers = [entry("a", FIRST), entry("b", SECOND), entry("c", THIRD), *(entry(n, (n, s)) for n, s in QKV)]
    assert verdicts(products, *layers) == ["integer", "float", "integer", "integer", "integer", "integer"]
    for wrong in (gemm(6, 64, 96), gemm(7, 66, 96), gemm(7, 64, 90), CONV):
        assert verdicts(products, entry("a", ("first", wrong))) == ["unknown"]
    assert verdicts(products, entry("a", FIRST), batch=3) == ["unknown"]
    assert verdicts(products, entry("a", FIRST), batch=None) == ["unknown"]


@needs_builder
def test_a_manifest_whose_shapes_lack_numbers_is_an_error(small_plans):
    entries = read_plan_manifest(small_plans / "int.plan").to_json()
    del entries["layers"][3]["parts"][0]["product"]["k"]
    with pytest.raises(
        FileProblemError, match=r"int\.plan is incomplete \(layers\[3\].parts\[0\].product.k is missing"
    ):
        attest_plan(small_plans / "int.plan", PlanManifest.from_json(entries))


@needs_builder
def test_a_merged_product_needs_all_layers_it_is_merged_from(products):
    assert verdicts(products, entry("q", QKV[0]), entry("k", QKV[1])) == ["unknown", "unknown"]
    wide = [(name, gemm(7, 24, 32)) for name in "qkv"]
    assert verdicts(products, *(entry(n, (n, s)) for n, s in wide)) == ["unknown"] * 3


@needs_builder
def test_a_layer_of_two_parts_is_two_products(products):
    assert verdicts(products, entry("a", FIRST, THIRD)) == ["integer", "integer"]
    assert verdicts(products, entry("a", FIRST, SECOND)) == ["integer", "float"]
    assert verdicts(products, entry("a", FIRST, ("gone", gemm(7, 1, 1)))) == ["integer", "unknown"]


@needs_builder
def test_a_name_that_stands_twice_is_unknown_unless_there_are_as_many_profiles(products):
    twice = [*products, *(p for p in products if p.nodes == ("first/product",))]
    assert verdicts(twice, entry("a", FIRST)) == ["unknown"]
    assert verdicts(twice, entry("a", FIRST), copies=2) == ["integer"]


def nameless(products) -> list[Product]:
    return [replace(product, nodes=(), listed=()) for product in products if len(product.nodes) == 1]


@needs_builder
def test_without_names_shapes_are_matched_as_multisets(products):
    first, second, third = sorted(nameless(products), key=lambda p: -(p.n.number or 0))
    layers = [entry("a", FIRST), entry("b", FIRST)]
    assert verdicts([first, second, third], entry("a", FIRST), entry("b", SECOND)) == ["integer", "float"]
    assert verdicts([first, first], *layers) == ["integer", "integer"]
    assert verdicts([first], *layers) == ["unknown", "unknown"]
    assert verdicts([first, first, first], *layers) == ["integer", "integer"]
    other = replace(first, operands=("float", "float"))
    assert verdicts([first, first, other], *layers) == ["unknown", "unknown"]
    assert verdicts([first, other], *layers) == ["unknown", "unknown"]
    assert verdicts([other, other], *layers) == ["float", "float"]
    told = replace(first, operands=("int8", "unknown"))
    assert verdicts([first, told], *layers) == ["unknown", "unknown"]


@needs_builder
def test_one_float_layer_among_equal_shapes_is_told_where_counts_agree(products):
    first = max(nameless(products), key=lambda p: p.n.number or 0)
    other = replace(first, operands=("half", "half"))
    wanted = [Wanted(layer=n, node="", shape=FIRST[1], integer=i) for n, i in (("a", True), ("b", False), ("c", True))]
    matching = Matching(wanted=wanted, products=[other, first, first], kernels=(), batch=2)
    assert [v.executed for v in matching.verdicts()] == ["integer", "float", "integer"]


@needs_builder
def test_a_named_product_is_never_taken_for_another_layer(products):
    assert verdicts(products, entry("a", ("elsewhere", FIRST[1]))) == ["unknown"]


SIZES = Product(
    kind="gemm", nodes=("n",), listed=("n",), operands=("int8", "int8"), m=Size(64, ("b",)), n=Size.of(8),
    k=Size.of(10), batch=Size.of(1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "shape", "fit"),
    [
        ({}, gemm(64, 9, 8), True),
        ({}, gemm(64, 10, 7), True),
        ({}, gemm(64, 8, 8), False),
        ({}, gemm(63, 9, 8), False),
        ({"k": Size.of(28)}, gemm(64, 27, 8), True),
        ({"k": Size.of(32)}, gemm(64, 27, 8), False),
        ({"k": Size.unknown()}, gemm(64, 9, 8), False),
        ({"k": Size(10, ("h",))}, gemm(64, 10, 8), False),
        ({"m": Size.of(8), "n": Size(64, ("b",))}, gemm(64, 9, 8), True),
        ({"m": Size(1, ("b", "h", "w"))}, gemm(64, 9, 8), True),
        ({"m": Size.unknown()}, gemm(64, 9, 8), False),
        ({"batch": Size(2, ("b",))}, gemm(64, 9, 8), False),
    ],
)
def test_sizes_may_be_padded_turned_and_dynamic_and_nothing_else(changes, shape, fit):
    assert fits(shape, replace(SIZES, **changes), columns=shape.n, batch=None) is fit


@pytest.mark.parametrize(
    ("key", "value", "fit"),
    [
        ("n", 32, True), ("c", 4, True), ("c", 5, False), ("n", 16, False), ("kernel", (1, 1), False),
        ("stride", (1, 1), False), ("padding", (0, 0, 0, 0), False), ("dilation", (2, 2), False),
        ("spatial", (16, 16), False), ("spatial_out", (8, 8), False),
    ],
)  # fmt: skip
def test_a_convolution_must_have_the_layers_geometry(key, value, fit):
    geometry = Convolution(
        n=32, c=4, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1,
        spatial=(Size.of(8),) * 2, spatial_out=(Size.of(4),) * 2,
    )  # fmt: skip
    product = replace(SIZES, kind="conv", m=Size(1, ("b",)), convolution=geometry)
    shape = replace(CONV, **{key: value})
    assert fits(shape, product, columns=shape.n, batch=None) is fit


@needs_builder
def test_the_worst_architecture_counts(small_plans, tmp_path, monkeypatch):
    """No small graph gets different types on two architectures: the second account is altered here."""
    plan = small_plans / "int.plan"
    told = read_plan_text(plan)
    worse = [
        replace(p, operands=("half", "half"), accelerators=("sm89",)) if KEPT in p.nodes[0] else p
        for p in (replace(p, accelerators=("sm89",)) for p in told.products)
    ]
    altered = replace(told, products=(*(replace(p, accelerators=("sm80",)) for p in told.products), *worse))
    monkeypatch.setattr("dq_deploy.verify.plan.attestation.read_plan_text", lambda path: altered)
    rows = executed(attested(small_plans, "int"))
    assert rows.pop(KEPT) == "float"
    assert set(rows.values()) == {"integer"}


@pytest.mark.parametrize(
    ("shape", "profiles", "batch"),
    [
        (["B", 1], [], None),
        ([3, 1], [], 3),
        (["B", 1], [{"x": {"min": [2, 1], "opt": [2, 1], "max": [2, 1]}}], 2),
        (["B", 1], [{"x": {"min": [1, 1], "opt": [2, 1], "max": [2, 1]}}], None),
        ([4, 1], [{}], 4),
    ],
)
def test_the_batch_is_fixed_where_all_profiles_agree(shape, profiles, batch):
    manifest = plan_manifest(inputs=[{"name": "x", "dtype": "float32", "shape": shape}], profiles=profiles)
    assert fixed_batch(manifest) == batch


@needs_builder
def test_full_tensorrt_without_its_library_or_json_is_all_unknown(small_plans, tmp_path):
    shutil.copy(small_plans / "int.plan", tmp_path / "x.plan")
    manifest = read_plan_manifest(small_plans / "int.plan")
    told = attest_plan(tmp_path / "x.plan", replace(manifest, runtime="tensorrt"))
    all_unknown(told, "x.plan.layers.json is not there and the engine cannot be loaded")
