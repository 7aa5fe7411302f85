"""A whole picture at the size of Stable Diffusion 1.5, prompt to pixels: seconds by our engine and by OpenVINO.

    python -m benchmarks.unets.whole_picture --work DIR --weights 4 --isa amx --attention bf16 --threads 2 --rounds 2

512 x 512 pixels, 20 steps, guidance, so that the UNet runs on two samples at once. Both sides are the same
StableDiffusionPipeline of diffusers with the same random weights, prompt, noise and scheduler; only what stands in the
UNet's place differs: our record, opened from a program file, or the float model as `ov.convert_model` makes it and
OpenVINO compiles it with no precision asked for. Text encoder and VAE are torch's in float32 on both sides. Each
picture is drawn in a process of its own, the sides in turns; opening the engine is timed apart. Folder --work is that
of `benchmarks.unets.run`, whose record and float model are taken. A row goes to benchmarks/results/whole_picture.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import quiet
from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import SD15_SCHEDULER
from benchmarks.unets.engines import Cpu, environment_of, program_path
from benchmarks.unets.float_model import ready_folder
from benchmarks.unets.pipelines_at_size import PROMPT, text_encoder, tokenizer, vae
from benchmarks.unets.run import record_path
from dq_deploy.bench.environment import describe_environment
from dq_deploy.engines.options import ATTENTION

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
MODEL = "sd15"
OURS, THEIRS = "native", "openvino"
STEPS, GUIDANCE, SEED = 20, 7.5, 0
LATENT = 64


def compiled_unet(folder: Path, threads: int) -> torch.nn.Module:
    """OpenVINO's network as a pipeline calls a UNet; shapes fixed, no option but threads."""
    import openvino as ov
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.configuration_utils import FrozenDict

    core = ov.Core()
    model = core.read_model(folder / "float.xml")
    with np.load(folder / "inputs-2.npz") as example:
        model.reshape({name: list(example[name].shape) for name in example.files})
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    config = UNet2DConditionModel.load_config(folder / "unet")

    class Compiled(torch.nn.Module):
        dtype = torch.float32
        device = torch.device("cpu")

        @property
        def config(self) -> FrozenDict:
            return FrozenDict(config)

        def forward(
            self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
        ) -> tuple[torch.Tensor]:
            given = {
                "sample": sample.numpy(),
                "timestep": np.full(len(sample), float(timestep), np.float32),
                "encoder_hidden_states": encoder_hidden_states.numpy(),
            }
            return (torch.from_numpy(np.array(request.infer(given)[0])),)

    return Compiled()


def draw(engine: str, program: Path, folder: Path, threads: int, attention: str | None, out: Path) -> dict[str, float]:
    """One picture; seconds of its parts."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from dq_deploy import IntegerDenoiser

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    texts, pixels = text_encoder(768, 12, 12), vae(4, (128, 256, 512, 512))
    start = time.perf_counter()
    if engine == OURS:
        unet: Any = IntegerDenoiser(program, threads=threads, attention=attention)
    else:
        unet = compiled_unet(folder, threads)
    took = {"open": time.perf_counter() - start, "unet": 0.0}
    run = unet.forward

    def timed(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return run(*given, **named)
        finally:
            took["unet"] += time.perf_counter() - begin

    unet.forward = timed
    pipeline = StableDiffusionPipeline(
        vae=pixels,
        text_encoder=texts,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler.from_config(SD15_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.random.default_rng(SEED).standard_normal((1, 4, LATENT, LATENT), dtype=np.float32))
    start = time.perf_counter()
    latents = pipeline(
        PROMPT, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent"
    ).images
    took["latents"] = time.perf_counter() - start
    with torch.inference_mode():
        pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor)
    took["picture"] = time.perf_counter() - start
    np.save(out, latents.numpy())
    return took


def child(words: Sequence[object], variables: Mapping[str, str]) -> dict[str, float]:
    """Draw in a process of its own.

    Raises:
        SystemExit: it failed; its words went to the terminal.
    """
    with environment_of(variables):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.unets.whole_picture", *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"drawing failed with {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Draw in turns, print, add a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks.unets.run")
    parser.add_argument("--weights", type=int, choices=(4, 8), default=4)
    parser.add_argument("--isa", default="amx", help="of the native engine; OpenVINO has all the CPU's")
    parser.add_argument("--attention", choices=ATTENTION, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draw", nargs=3, metavar=("ENGINE", "PROGRAM", "OUT"), help=argparse.SUPPRESS)
    own = parser.parse_args()
    folder = ready_folder(MODEL, own.work, None)
    if own.draw:
        engine, program, out = own.draw
        print(json.dumps(draw(engine, Path(program), folder, own.threads, own.attention, Path(out))))
        return
    record = record_path(MODEL, own.weights, own.work, attention=own.attention)
    cpu = Cpu(isa=own.isa, hide_bf16=False, folder=own.work)
    program = program_path(record, own.isa, own.work)
    options = ["--work", own.work, "--threads", own.threads]
    options += ["--attention", own.attention] if own.attention else []
    seconds: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
    busy = []
    for _ in range(own.rounds):
        for engine, taken in seconds.items():
            out = own.work / f"whole-picture-{engine}.npy"
            busy.append(quiet.others_busy())
            words = [*options, "--draw", engine, program, out]
            taken.append(child(words, cpu.changes() if engine == THEIRS else {}))
            print(engine, {name: round(value, 2) for name, value in taken[-1].items()}, flush=True)
    middle = {
        engine: {part: float(np.median([one[part] for one in taken])) for part in taken[0]}
        for engine, taken in seconds.items()
    }
    ours, theirs = (middle[engine]["picture"] for engine in seconds)
    print(f"a picture in {ours:.1f} s, by OpenVINO in {theirs:.1f} s: {theirs / ours:.2f} times")
    print("\n".join(filter(None, [quiet.remark(busy)])))
    row = {
        "model": MODEL,
        "bits": f"W{own.weights}A8",
        "isa": own.isa,
        "attention": own.attention,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "rounds": own.rounds,
        "seconds": seconds,
        "median": middle,
        "others_busy": float(np.mean(busy)),
        "commit": commit(),
        "environment": describe_environment(threads=own.threads),
    }
    with (ROOT / "results" / "whole_picture.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
