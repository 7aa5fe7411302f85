"""torchao's dynamic INT8: weights int8 a channel, activations int8 a token, linear layers only."""

from __future__ import annotations

import torch
import torch_model
from job import Job, latency_ms
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    module = torch_model.load(job["model_dir"], job.threads)
    float_ms = latency_ms(torch_model.denoiser(module), job.example())
    linear = sum(isinstance(m, torch.nn.Linear) for m in module.modules())
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in module.modules())
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    job.calibrated()
    target = job.work / "int8.pt"
    torch.save(module.state_dict(), target)
    job.finish(
        torch_model.denoiser(module),
        packages=("torchao", "torch"),
        size_bytes=target.stat().st_size,
        note=f"{linear} linear layers; its {convolutions} convolutions stay float32: the package has none of theirs",
        float_latency_ms=float_ms,
    )


if __name__ == "__main__":
    main()
