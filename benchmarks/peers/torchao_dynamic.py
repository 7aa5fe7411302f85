"""torchao's dynamic INT8: weights int8 a channel, activations int8 a token, linear layers only."""

from __future__ import annotations

import copy

import torch
import torch_model
from job import Job
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_


def timed(modules, job):
    """(float, quantized) as torch.compile makes them and a word for it, or as they are where it does not."""
    try:
        compiled = tuple(torch_model.denoiser(torch.compile(module)) for module in modules)
        for run in compiled:
            run(job.example())
        return compiled, "both compiled by torch.compile for the time"
    except Exception as error:  # a compiler that fails is a finding, not a stop
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return tuple(torch_model.denoiser(module) for module in modules), f"torch.compile failed ({first}): eager"


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    module = torch_model.load(job["model_dir"], job.threads)
    floating = copy.deepcopy(module)
    chosen = [n for n, m in module.named_modules() if isinstance(m, torch.nn.Linear) and "time_embedding" not in n]
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in module.modules())
    job.begin()
    quantize_(module, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda _module, name: name in chosen)
    job.calibrated()
    target = job.work / "int8.pt"
    torch.save(module.state_dict(), target)
    pair, words = timed((floating, module), job)
    job.finish(
        torch_model.denoiser(module),
        timed=pair,
        layers=len(chosen),
        packages=("torchao", "torch"),
        size_bytes=target.stat().st_size,
        note=f"its {convolutions} convolutions stay float32: the package has none of theirs; {words}",
    )


if __name__ == "__main__":
    main()
