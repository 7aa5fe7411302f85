"""An unmodified Optimum opens the folder and draws what dq-sample draws, bit for bit from the same numbers.

Optimum's versions cannot be installed beside ours. `make test-optimum` makes an environment for each tool and says
where its Python is; without, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dq_deploy import IntegerDenoiser, load_record
from dq_deploy.models.pipeline import build_scheduler, denoiser_name, open_pipeline
from dq_deploy.pipelines.layouts import write_optimum_folder
from tests.pipelines.layouts.tiny_folders import tiny_folder

PYTHONS = {"onnxruntime": "DQ_OPTIMUM_PYTHON", "openvino": "DQ_OPTIMUM_INTEL_PYTHON"}
SCRIPT = Path(__file__).with_name("optimum_side.py")
CASES = [("sd", "onnxruntime"), ("sdxl", "onnxruntime"), ("sd3", "onnxruntime"), ("flux", "onnxruntime")]
CASES += [("sd", "openvino"), ("sdxl", "openvino"), ("sd3", "openvino"), ("flux", "openvino")]
TEXT_TOLERANCE = 1e-4
"""Of the latents drawn from a text, of their largest value: float32 text encoders of two libraries."""


def python_of(tool: str) -> str:
    found = os.environ.get(PYTHONS[tool])
    if not found:
        pytest.skip(f"{PYTHONS[tool]} names no Python with Optimum for {tool}; run make test-optimum")
    return found


def drawn_here(tiny, engine, **arguments):
    """Latents of the pipeline of our own diffusers around the folder's denoiser."""
    denoiser = IntegerDenoiser(engine)
    pipeline = open_pipeline(tiny.pipeline, denoiser=denoiser)
    config = load_record(tiny.record).scheduler_config
    if config is not None:
        pipeline.scheduler = build_scheduler(config)
    assert getattr(pipeline, denoiser_name(pipeline)) is denoiser
    images = pipeline(**arguments, **tiny.settings, output_type="latent").images.numpy()
    denoiser.close()
    return images


def drawn_by_optimum(python, tool, folder, tiny, tmp_path):
    extra = {} if tiny.prompt is None else {"prompt": tiny.prompt}
    np.savez(tmp_path / "inputs.npz", settings=json.dumps(tiny.settings), **tiny.tensors, **extra)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, SCRIPT, tool, folder, tmp_path / "inputs.npz", tmp_path / "outputs.npz"]
    done = subprocess.run(command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(tmp_path / "outputs.npz"))


@pytest.mark.parametrize(("name", "tool"), CASES)
def test_optimum_draws_the_same_latents(name, tool, tmp_path):
    python = python_of(tool)
    tiny = tiny_folder(name, tmp_path)
    written = write_optimum_folder(load_record(tiny.record), tiny.pipeline, tmp_path / "out", target=tool)
    theirs = drawn_by_optimum(python, tool, written.path, tiny, tmp_path)
    tensors = {key: torch.from_numpy(value) for key, value in tiny.tensors.items()}
    ours = drawn_here(tiny, written.engine, **tensors)
    assert np.isfinite(ours).all()
    assert np.ptp(ours) > 0
    assert np.array_equal(theirs["latents"], ours)
    if tiny.prompt is not None:
        mine = drawn_here(tiny, written.engine, prompt=[tiny.prompt] * len(ours), latents=tensors["latents"])
        assert not np.array_equal(mine, ours)
        print(name, tool, "from a text:", np.abs(theirs["text_latents"] - mine).max() / np.abs(mine).max())
        np.testing.assert_allclose(theirs["text_latents"], mine, rtol=0, atol=TEXT_TOLERANCE * np.abs(mine).max())
        assert theirs["pictures"].shape == (len(ours), 16, 16, 3)
        assert np.ptp(theirs["pictures"]) > 0
