"""A denoiser with text takes a text of any length, on every engine, whatever length came before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.errors import InputError
from dq_deploy.models import call_denoiser
from dq_deploy.open_engine import open_engine
from dq_deploy.record import load_record, save_record
from dq_deploy.simulation.fake_quant import simulate
from dq_deploy.targets import export
from tests.tiny import ONE_TEXT_LEVEL, random_record, tiny_conditional_denoiser

LENGTHS = (77, 1, 2, 7, 16, 154, 33, 77)
"""After 1 and 2 tokens OpenVINO 2026.4 computes 16 and more wrongly, unless it keeps no kernels."""


@pytest.fixture(scope="module")
def record():
    """Of a UNet of one level, for the native engine, which traces each length."""
    return random_record(tiny_conditional_denoiser(**ONE_TEXT_LEVEL), steps=3)


@pytest.fixture(scope="module")
def two_levels():
    """Of a UNet of two levels, traced once for both engines of graphs."""
    return random_record(tiny_conditional_denoiser(), steps=3)


def feeds(tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(tokens)
    return {
        "sample": rng.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "timestep": np.array([10, 700], np.float32),
        "encoder_hidden_states": rng.standard_normal((2, tokens, 12)).astype(np.float32),
    }


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "native"])
def test_texts_of_all_lengths_in_any_order_give_what_the_simulation_gives(target, request, tmp_path):
    if target == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed: pip install 'dq-deploy[openvino]'")
    record = request.getfixturevalue("record" if target == "native" else "two_levels")
    path = tmp_path / ("m.pt" if target == "native" else "unet.onnx")
    if target == "native":
        save_record(record, path)
    else:
        export(record, path, target=target)
    simulation = simulate(record)
    with open_engine(path) as runner:
        for tokens in LENGTHS:
            given = feeds(tokens)
            with torch.inference_mode():
                want = call_denoiser(simulation, {k: torch.from_numpy(v) for k, v in given.items()}).numpy()
            gap = np.abs(runner.run(given)["output"] - want).max() / np.abs(want).max()
            assert gap < 0.05, (
                tokens
            )  # single codes flip on the last bit of a float; a wrong product is off by far more
        empty = {**feeds(3), "encoder_hidden_states": np.zeros((2, 0, 12), np.float32)}
        with pytest.raises(InputError):
            runner.run(empty)


def test_the_record_says_that_the_length_varies(tmp_path):
    from dq_deploy.models import default_call

    call = default_call(tiny_conditional_denoiser().config)
    assert call.varying() == ("B", "height", "width", "tokens")
    assert call.inputs[2].shape == ("B", "tokens", 12)
    sdxl = default_call(tiny_conditional_denoiser(sdxl=True).config)
    assert [item.name for item in sdxl.inputs][3:] == ["added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids"]


def test_programs_of_other_lengths_share_the_memory_of_the_parameters(record, tmp_path):
    save_record(record, tmp_path / "m.pt")
    with open_engine(tmp_path / "m.pt") as runner:
        executor = runner.executor
        for tokens in (3, 4, 5, 6, 7, 8):
            runner.run(feeds(tokens))
        assert len(executor.programs.kept()) <= 4
        assert len({id(floats._parameters) for _, floats in executor.programs.kept().values()}) == 2
    assert load_record(tmp_path / "m.pt").steps == 3


def test_a_length_that_was_prepared_is_not_traced_by_its_first_run(record, tmp_path, monkeypatch):
    save_record(record, tmp_path / "m.pt")
    with open_engine(tmp_path / "m.pt") as runner:
        runner.preparation(feeds(5))()
        assert runner.preparation(feeds(5)) is None
        monkeypatch.setattr(runner.executor.programs, "_made", lambda sizes: pytest.fail("traced in the run"))
        runner.run(feeds(5))
