"""The shapes that are measured are those of the networks."""

from __future__ import annotations

import pytest

from benchmarks.kernels import shapes
from benchmarks.kernels.shapes import MODELS, OPS, PRODUCTS, all_shapes, meta_module
from dq_deploy.models import default_call, macs_of, quantizable_layers
from tests.tiny import tiny_conditional_config


@pytest.mark.parametrize("model", ["cifar", "tiny sdxl"])
def test_products_are_the_quantizable_layers(model, monkeypatch):
    tiny = ("unet2d_condition", tiny_conditional_config(sdxl=True), 2)
    monkeypatch.setattr(shapes, "MODELS", {**MODELS, "tiny sdxl": tiny})
    _, config, batch = shapes.MODELS[model]
    sites = quantizable_layers(meta_module(model), default_call(config), batch=batch)
    products = all_shapes((model,), PRODUCTS)

    assert sum(shape.count for shape in products) == len(sites)
    assert len({(shape.op, shape.name) for shape in products}) == len(products)
    work = sum(shape.count * shape.operations for shape in products)
    alone = sum(2 * site.macs for site in sites if len(site.input_shape) == 2 and site.input_shape[0] == 1)
    assert work == 2 * batch * (macs_of(meta_module(model), default_call(config)).of_quantizable - alone // 2) + alone
    for site in sites:
        sizes = {(shape.case.channels, shape.case.out_channels) for shape in products if shape.op.endswith(site.kind)}
        assert (site.in_channels, site.out_channels) in sizes


def test_every_layer_gets_codes_from_some_op():
    _, config, batch = MODELS["cifar"]
    fed = sum(s.count * s.outputs for s in all_shapes(("cifar",), OPS[:4]))
    layers = quantizable_layers(meta_module("cifar"), default_call(config), batch=batch)

    assert fed == len(layers)


def test_bytes_count_what_is_read_and_written_once():
    from dq_kernels.int_linear.cases import Case

    shape = shapes.Shape("int_linear", "cifar", Case(name="a", batch=2, rows=3, channels=10, out_channels=7))

    assert shape.operations == 2 * 2 * 3 * 10 * 7
    assert shape.nbytes == 2 * 3 * 10 + 10 * 7 // 2 + 4 * 2 * 3 * 7
    assert shape.with_bits(8).nbytes - shape.nbytes == 10 * 7 // 2


def test_quick_keeps_three_of_each_op():
    kept = all_shapes(("cifar",), quick=True)

    assert {op: sum(shape.op == op for shape in kept) for op in OPS} == {
        "quantize": 3,
        "group_norm_silu_quantize": 3,
        "layer_norm_quantize": 0,
        "geglu_quantize": 0,
        "int_linear": 3,
        "int_conv2d": 3,
    }
