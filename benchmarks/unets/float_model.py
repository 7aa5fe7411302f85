"""What peers are given of a model: it itself in three forms, calibration inputs, and what the float model answers.

    python -m benchmarks.unets.float_model cifar FOLDER

writes into the folder, in a process of its own because that takes several times the model's memory:

- `unet/` of diffusers, `float.onnx`, whose batch varies, and `float.xml` by ov.convert_model and ov.save_model;
- `calibration.npz`, what the record of `benchmarks.unets.run` is calibrated with;
- `inputs-B.npz` of a step at batch B, to be timed;
- `check.npz` and `check-float.npy`, what is compared and the float model's own; `schedule.json`, the steps of DDIM,
  where pictures are compared and not the outputs of one step;
- `model.json`, facts; a folder that has it is complete.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import DqError

if TYPE_CHECKING:
    import torch

    from dq_deploy.models import Denoiser

BATCHES = (1, 2, 8)
LARGE = 500e6
"""Parameters from which an ONNX file has its weights in a file beside it, and fewer samples are compared."""
PICTURES, STEPS, SEED = 16, 20, 1234
TRAINED = ("demo",)
"""Models whose pictures are compared; of others, with random weights or one step of their own, a step's outputs."""


def ready_folder(model: str, work: Path, pipeline: Path | None) -> Path:
    """The folder of a model below the work folder; made where it is not complete.

    Raises:
        DqError: it could not be made; the last line of the process that should.
    """
    folder = work / f"{model}-float"
    if not (folder / "model.json").is_file():
        words = [
            sys.executable,
            "-m",
            "benchmarks.unets.float_model",
            model,
            str(folder),
            *([str(pipeline)] if pipeline else []),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise DqError(f"the float files of {model} could not be made: {lines[-1]}")
    return folder


def write_folder(
    denoiser: Denoiser, calibration: dict[str, Any], folder: Path, *, pictures: bool, held_out: dict[str, Any] | None
) -> None:
    """Write all of it.

    Args:
        denoiser: the float model.
        calibration: inputs by name, [M, ...].
        folder: to write into.
        pictures: compare pictures by DDIM, not the outputs of a step.
        held_out: inputs of the step whose outputs are compared; random ones by default.
    """
    from benchmarks.peers.float_files import write_float_graph
    from dq_deploy.models import example_inputs

    folder.mkdir(parents=True, exist_ok=True)
    count = sum(value.numel() for value in denoiser.module.parameters())
    names = list(example_inputs(denoiser.call, 1, 0))
    np.savez(folder / "calibration.npz", **{name: calibration[name] for name in names})
    for batch in BATCHES:
        np.savez(folder / f"inputs-{batch}.npz", **example_inputs(denoiser.call, batch, 0))
    denoiser.module.save_pretrained(folder / "unet")
    samples = 2 if count > LARGE else max(BATCHES)
    step = {name: held_out[name][:samples] for name in names} if held_out else None
    write_check(denoiser, folder, pictures, step or example_inputs(denoiser.call, samples, SEED))
    write_float_graph(denoiser, folder / "float.onnx", large=count > LARGE)
    write_openvino(denoiser, folder / "float.xml")
    facts = {"large": count > LARGE}
    (folder / "model.json").write_text(json.dumps({**facts, "parameters": count}), encoding="utf-8")


def write_check(denoiser: Denoiser, folder: Path, pictures: bool, step: dict[str, Any]) -> None:
    """What is compared, pictures or the outputs of a step, and the float model's own by torch."""
    import torch

    from benchmarks.peers.float_files import schedule_of
    from benchmarks.peers.job import outputs_of
    from dq_deploy.models import call_denoiser
    from dq_deploy.record.model_config import sample_shape

    if pictures:
        draw = np.random.default_rng(SEED)
        noise = draw.standard_normal((PICTURES, *sample_shape(denoiser.config)), dtype=np.float32)
        classes = (
            {"labels": np.arange(PICTURES) % 10} if any(i.name == "class_labels" for i in denoiser.call.inputs) else {}
        )
        np.savez(folder / "check.npz", noise=noise, **classes)
        schedule = json.dumps(schedule_of(denoiser.scheduler_config, STEPS))
        (folder / "schedule.json").write_text(schedule, encoding="utf-8")
    else:
        np.savez(folder / "check.npz", **step)

    def run(inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            given = {name: torch.from_numpy(value) for name, value in inputs.items()}
            return call_denoiser(denoiser.module, given).numpy()

    np.save(folder / "check-float.npy", outputs_of(run, folder, 2))


def write_openvino(denoiser: Denoiser, path: Path) -> None:
    """The model as ov.convert_model takes it from torch; nothing where OpenVINO is not installed."""
    import torch

    from dq_deploy.models import call_denoiser, example_inputs

    try:
        import openvino as ov
    except ImportError:
        return
    example = example_inputs(denoiser.call, 2, 0)

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = denoiser.module

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return call_denoiser(self.module, dict(zip(example, values, strict=True)))

    values = tuple(torch.from_numpy(value) for value in example.values())
    with torch.no_grad():
        model = ov.convert_model(Positional().eval(), example_input=values)
    for name, value in zip(example, model.inputs, strict=True):
        value.get_tensor().set_names({name})
    ov.save_model(model, path)


def main() -> int:
    """Write the folder of a model."""
    from benchmarks.unets.denoisers import subject_of

    model, folder, *rest = sys.argv[1:]
    subject = subject_of(model, Path(rest[0]) if rest else None)
    # a model of one step is called with noise of its own size alone
    held_out = subject.calibration(seed=SEED, samples=max(BATCHES)) if model == "terrain" else None
    calibration = subject.calibration()
    write_folder(subject.denoiser, calibration, Path(folder), pictures=model in TRAINED, held_out=held_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
