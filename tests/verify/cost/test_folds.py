"""Folded scales are found again from the weights, so that folded layers compare with the float model."""

from __future__ import annotations

import numpy as np

from dq_deploy import quantize
from dq_deploy.methods.prepare.dilation import common_dilation, dilation_of
from dq_deploy.models import fold_sites
from dq_deploy.verify.cost import quantization_error as measuring
from dq_deploy.verify.cost.folds import Folds, folds_of
from dq_deploy.verify.cost.quantization_inputs import quantization_inputs
from tests.tiny import tiny_conditional_denoiser


def dilated(denoiser):
    return quantize(
        denoiser,
        method="dilatequant",
        weight_bits=8,
        activation_bits=8,
        without=("distillation",),
        steps=2,
        samples=4,
        keep=(),
        outputs=False,
    )


def test_factors_are_those_of_the_dilation():
    denoiser = tiny_conditional_denoiser()
    folds = folds_of(dilated(denoiser), denoiser.module)
    sites = fold_sites(denoiser.module, denoiser.call)
    assert set(folds.inputs) == {name for site in sites for name in site.consumers}
    assert set(folds.outputs) == {site.producer for site in sites if site.kind.endswith("_rows")}
    for site in sites:
        weights = [denoiser.module.get_submodule(name).weight.detach().numpy() for name in site.consumers]
        want = common_dilation([dilation_of(w) for w in weights])
        exact = not site.kind.endswith("_rows")
        for name in site.consumers:
            assert np.allclose(folds.inputs[name], want, rtol=1e-6 if exact else 1e-2), site
        if site.kind == "value_rows":  # the gate passes a GELU and was not scaled
            assert (folds.outputs[site.producer][len(want) :] == 1).all()


def test_a_dilated_record_is_close_to_float_everywhere_and_would_not_be_with_the_folds_left_in(monkeypatch):
    denoiser = tiny_conditional_denoiser()
    record = dilated(denoiser)
    inputs, _ = quantization_inputs(record, denoiser.module, images=2)
    found = measuring.quantization_error(record, denoiser.module, inputs)
    assert found.local_sqnr_db.min() > 18
    assert np.median(found.local_sqnr_db) > 35
    monkeypatch.setattr(measuring, "folds_of", lambda *_: Folds(inputs={}, outputs={}))
    raw = measuring.quantization_error(record, denoiser.module, inputs)
    folded = [found.layers.index(name) for name in folds_of(record, denoiser.module).inputs]
    assert (raw.local_sqnr_db[folded].min(axis=1) < found.local_sqnr_db[folded].min(axis=1) - 10).sum() >= 5


def test_a_record_without_folds_has_none():
    denoiser = tiny_conditional_denoiser()
    record = quantize(denoiser, method="minmax", steps=2, samples=4, outputs=False)
    folds = folds_of(record, denoiser.module)
    assert not folds.inputs
    assert not folds.outputs
