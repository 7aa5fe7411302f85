"""What a record says beyond its numbers must belong to its denoiser, and what nothing runs is refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dq_deploy.errors import RecordError
from dq_deploy.models import default_call, denoiser_from_record
from dq_deploy.record import AttentionQuantizers, Branch, Call, CallInput, CodeTable, Fold
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

RECORD = random_record(tiny_denoiser(**ONE_LEVEL), steps=2)
TABLE = CodeTable(bits=8, q_min=0, q_max=255, scale=np.ones(1, np.float32), zero_point=np.zeros(1, np.int32))


def changed(**fields):
    layer = dataclasses.replace(RECORD.layers["conv_in"], **fields)
    return dataclasses.replace(RECORD, layers={**RECORD.layers, layer.name: layer})


def branch():
    layer = RECORD.layers["conv_in"]
    down = np.zeros((1, layer.in_channels, *layer.kernel), np.float32)
    return changed(branch=Branch(down=down, up=np.zeros((layer.out_channels, 1), np.float32), scale=1.0))


REFUSED = {
    "layer conv_in has a low-rank branch of rank 1, which this version": branch,
    "layer conv_in is folded into nope.norm, expected a module": lambda: changed(
        folded=Fold(producer="nope.norm", factor=np.ones(1, np.float32))
    ),
    "quantizers of the attention nope, expected a module": lambda: dataclasses.replace(
        RECORD, attention={"nope": AttentionQuantizers(name="nope", tables={"q": TABLE})}
    ),
    "denoiser is called with banana, which UNet2DModel does not take; expected some of": lambda: dataclasses.replace(
        RECORD, call=Call(inputs=(CallInput(name="banana", dtype="float32", shape=(3,)),))
    ),
    "denoiser is called with guess_mode, which UNet2DModel does not take": lambda: dataclasses.replace(
        RECORD, call=Call(inputs=default_call(RECORD.model_config).inputs, constants={"guess_mode": True})
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_it_is_refused_by_name_where_the_denoiser_is_built(message):
    with pytest.raises(RecordError, match=message):
        denoiser_from_record(REFUSED[message]())


def test_the_denoisers_own_call_is_taken():
    denoiser_from_record(dataclasses.replace(RECORD, call=default_call(RECORD.model_config)))


def test_of_a_bias_by_step_the_float_module_has_the_mean():
    rows = np.stack([np.full(RECORD.layers["conv_in"].out_channels, v, np.float32) for v in (1, 4)])
    assert (denoiser_from_record(changed(bias=rows)).conv_in.bias == 2.5).all()
