"""The shipped transformer: its folder loads plainly, is quantized, is exact natively, and draws the asked digits."""

from __future__ import annotations

import pytest

from dq_deploy import load_model, quantize, save_record, verify

PLAIN = 0.55  # share of its 50 images that must show the asked digit; the README gives that of 500


@pytest.fixture
def folder(repository):
    return repository / "examples" / "digits-dit"


def test_the_folder_is_small_and_diffusers_loads_it_in_float32(folder):
    import torch
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4_000_000
    network = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config.prediction_type == "v_prediction"


def test_the_float_model_draws_the_asked_digits(script, folder):
    shares = script("draw_digits_dit.py").main(["--model", str(folder), "--count", "50"])
    assert shares[1.0] > PLAIN


def test_the_quantized_model_is_exact_natively_and_draws(script, folder, tmp_path):
    model = tmp_path / "model.pt"
    record = quantize(load_model(folder), method="minmax", weight_bits=4, activation_bits=8, steps=2, samples=2)
    save_record(record, model)
    report = verify(record, model, steps=2, inputs=1)
    assert (report.layers_compared, report.layers_total) == (38, 38)
    assert report.codes_compared > 0
    assert report.max_code_difference == report.max_accumulator_difference == 0
    picture = tmp_path / "drawn.png"
    drawing = script("draw_digits_dit.py")
    drawing.main(["--model", str(folder), "--engine", str(model), "--count", "10", "--steps", "2", "--guidance", "2",
                  "--picture", str(picture)])  # fmt: skip
    assert picture.is_file()
