"""The example scripts run, at toy settings."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from diffusers import DDPMPipeline, DDPMScheduler

from tests.tiny import ONE_LEVEL, tiny_denoiser


def test_the_python_api_from_the_float_model_to_the_proof(script, tmp_path):
    example = script("python_api.py")
    assert (example.MODEL / "unet" / "config.json").is_file()
    denoiser = tiny_denoiser(classes=10, sample_size=32, **ONE_LEVEL)
    scheduler = DDPMScheduler.from_config(denoiser.scheduler_config)
    DDPMPipeline(denoiser.module, scheduler).save_pretrained(tmp_path / "float")
    given = ["--model", str(tmp_path / "float"), "--out", str(tmp_path), "--steps", "4", "--samples", "4"]
    numbers = example.main(given)
    assert numbers["max_code_difference"] == numbers["max_accumulator_difference"] == 0
    assert numbers["integer_mac_share"] > 0.95
    assert numbers["latency_ms"] > 0
    assert {"model.safetensors", "unet.onnx"} <= {path.name for path in tmp_path.iterdir()}


def test_the_training_script_makes_a_folder_that_can_be_loaded(script, tmp_path):
    from dq_deploy import load_model

    script("train_mnist_ddpm.py").main(["--out", str(tmp_path), "--iterations", "2", "--batch", "2"])
    denoiser = load_model(tmp_path)
    assert denoiser.config["num_class_embeds"] == 11
    assert sum(p.numel() for p in denoiser.module.parameters()) == 1_114_209


def test_the_transformer_script_goes_on_from_its_checkpoint_and_can_be_loaded(script, tmp_path, capsys):
    import torch

    from dq_deploy import load_model

    trained = script("train_digits_dit.py")
    for iterations in ("1", "3"):
        trained.main(["--out", str(tmp_path), "--iterations", iterations, "--batch", "2"])
    assert "after 3 iterations" in capsys.readouterr().out
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 3
    denoiser = load_model(tmp_path)
    assert denoiser.family == "DiTTransformer2DModel"
    assert {p.dtype for p in denoiser.module.parameters()} == {torch.float32}


def test_a_guided_network_is_the_one_without_a_label_at_scale_0_and_the_one_with_at_1(script):
    import torch

    drawing = script("draw_digits_dit.py")
    network = script("train_digits_dit.py").build_model()[0].double().eval()
    torch.nn.init.normal_(network.proj_out_2.weight)
    torch.nn.init.normal_(network.proj_out_1.weight)
    sample, labels = torch.randn(2, 1, 32, 32, dtype=torch.float64), torch.tensor([3, 8])
    given = {"timestep": torch.tensor([10.0, 900.0]), "return_dict": False}
    with torch.no_grad():
        found = [drawing.Guided(network, scale)(sample, class_labels=labels, **given)[0] for scale in (0.0, 1.0, 3.0)]
        without = network(sample, class_labels=torch.tensor([10, 10]), **given)[0]
        asked = network(sample, class_labels=labels, **given)[0]
    for guided, wanted in zip(found, (without, asked, without + 3 * (asked - without)), strict=True):
        torch.testing.assert_close(guided, wanted)


def test_the_classifier_script_writes_weights_that_can_be_loaded(script, tmp_path):
    from dq_deploy.quality.classifier import load_digit_classifier

    path = tmp_path / "weights.safetensors"
    accuracy = script("digit-classifier/train.py").train(epochs=1, batch=200, seed=0, out=path)
    assert 0.2 < accuracy < 1
    load_digit_classifier(path)


def test_the_digits_are_split_by_class_without_overlap(script):
    import numpy as np

    digits = script("digits.py")
    images, labels = digits.load_digits()
    train, held_out = digits.split_digits(labels)
    assert images.shape == (5000, 1, 32, 32)
    assert (images.min(), images.max()) == (-1, 1)
    assert not set(train) & set(held_out)
    np.testing.assert_array_equal(np.bincount(labels[held_out]), [100] * 10)


def test_shifted_digits_move_and_keep_their_ink(script):
    import numpy as np

    digits = script("digits.py")
    image = np.full((1, 1, 8, 8), -1, np.float32)
    image[0, 0, 3, 4] = 1
    moved = digits.shift_images(image, np.array([[2, -1]]))
    assert moved[0, 0, 5, 3] == 1
    assert (moved == 1).sum() == 1


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("builder", [True, False])
def test_the_demo_shows_the_commands_of_the_readme(script, tmp_path, monkeypatch, builder, kernels):
    demo = script("demo.py")
    monkeypatch.setattr(demo, "find_spec", lambda _name: object() if builder else None)
    monkeypatch.setattr(demo, "kernels_are_built", lambda: kernels)
    found = demo.commands(tmp_path, model="examples/mnist-ddpm-32", preset="fast", threads=2)
    plans = ["build", "attest"] if builder else []
    native = ["verify natively", "bench natively", "sample natively"] if kernels else []
    assert list(found) == ["quantize", "export", "verify", "bench", "sample", *native, *plans]
    for name in native:
        command = found[name]
        assert command[command.index("--engine") + 1].endswith("model.pt")
    assert {"--exact", "--require-integer", "0.95"} <= set(found["verify"])
    assert "--baseline" in found["bench"]
    assert "--compare" in found["sample"]


@pytest.mark.parametrize("kernels", [True, False])
def test_the_demo_ends_with_a_prompt_on_our_own_kernels_where_they_are_built(script, tmp_path, monkeypatch, kernels):
    demo = script("demo.py")
    monkeypatch.setattr(demo, "kernels_are_built", lambda: kernels)
    ran = []
    monkeypatch.setattr(demo, "run", ran.append)
    monkeypatch.setattr(demo, "find_spec", lambda _name: object())
    demo.draw_prompt(tmp_path, given="a cat", threads=1)
    quantize, sample = ran
    assert [command[0] for command in ran] == ["dq-quantize", "dq-sample"]
    assert (
        quantize[quantize.index("--model") + 1] == sample[sample.index("--model") + 1] == "examples/emoji-text-to-image"
    )
    assert sample[sample.index("--prompt") + 1] == "a cat"
    assert "--compare" in sample
    assert ("--engine" in sample) == kernels


def test_the_demo_asks_for_the_prompt_on_a_terminal_only(script, monkeypatch):
    demo = script("demo.py")
    monkeypatch.setattr("builtins.input", lambda _question: " a dog ")
    for terminal, given, expected in [(True, None, "a dog"), (True, "a cat", "a cat"), (False, None, demo.PROMPT)]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda answer=terminal: answer))
        assert demo.typed_prompt(given) == expected


def test_the_demo_without_the_extra_for_prompts_says_so(script, tmp_path, monkeypatch, capsys):
    demo = script("demo.py")
    monkeypatch.setattr(demo, "find_spec", lambda _name: None)
    demo.draw_prompt(tmp_path, given=None, threads=1)
    assert "dq-deploy[pipelines]" in capsys.readouterr().out


def test_the_demo_summary_reads_the_reports(script, tmp_path):
    verify = {
        "layers_compared": 3,
        "layers_total": 3,
        "output_psnr_db": None,
        "codes_compared": 1000,
        "accumulators_compared": 10,
        "max_code_difference": 0,
        "max_accumulator_difference": 0,
        "integer_mac_share": 0.99,
    }
    bench = {
        "latency_ms": {"p50": 2.0},
        "baseline_latency_ms": {"p50": 3.0},
        "speedup": 1.5,
        "file_mib": 1,
        "baseline_file_mib": 4,
    }
    for name, value in {"verify": verify, "bench": bench, "samples": {"mean_psnr_db": 30, "mean_ssim": 0.9}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    rows = dict(script("demo.py").summary_rows(tmp_path, {"export": 4.0}))
    assert rows["layers compared bit for bit"] == "3 of 3"
    assert rows["speedup over the float baseline"] == "1.50x"
    assert rows["time in all"] == "4.0 s"
    assert rows["TensorRT-RTX plan"].startswith("not built")
    assert rows["native engine"].startswith("not run")
    timed = {**bench, "peak_mib": 40.0, "baseline_peak_mib": 120.0, "environment": {"native": {"isa": "avx2"}}}
    own = {"native": verify, "native_bench": timed, "native_samples": {"count": 10, "seconds": 2.0}}
    for name, value in own.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    rows = dict(script("demo.py").summary_rows(tmp_path, {"export": 4.0}))
    assert rows["native engine, layers compared bit for bit"] == "3 of 3, largest differences 0 and 0"
    assert rows["native engine, peak memory, float's"] == "40 MiB, 120 MiB"
    assert rows["native engine, images a second, 20 steps"] == "5.00"
    build = {"plan_mib": 2.5, "compute_capabilities": ["8.9", "12.0"]}
    for name, value in {"build": build, "plan": {"integer_mac_share": 0.97}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    rows = dict(script("demo.py").summary_rows(tmp_path, {}))
    assert rows["TensorRT-RTX plan"] == "2.50 MiB, built for 8.9, 12.0"
    assert rows["its integer share of all MACs, by its own text"] == "97.00 %"
