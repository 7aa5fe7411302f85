"""torch on the CPU: float32, bfloat16 channels-last with and without torch.compile, and SDNQ's int8."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
from turns import Opened, Settings, main

SDNQ = {
    "weights_dtype": "int8",
    "use_quantized_matmul": True,
    "quant_conv": True,
    "use_quantized_matmul_conv": True,
}
"""Weights and activations in int8, convolutions too; by default it quantizes linear layers' weights alone."""


def opened(settings: Settings) -> Opened:
    """The module of diffusers as the engine's name says."""
    torch.set_num_threads(settings.threads)
    folder = Path(settings.folder) / "unet"
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    kind = torch.float32 if "float32" in settings.engine else torch.bfloat16
    module = getattr(diffusers, name).from_pretrained(folder, torch_dtype=kind).eval()
    if settings.engine == "sdnq int8":
        from sdnq import sdnq_post_load_quant

        with torch.no_grad():
            module = sdnq_post_load_quant(module, torch_dtype=kind, **SDNQ)
        where = [type(layer).__name__ for layer in module.modules() if type(layer).__name__.startswith("SDNQ")]
        precision = f"int8 in {len(where)} layers, {str(kind).removeprefix('torch.')}"
    else:
        module.to(memory_format=torch.channels_last)
        precision = str(kind).removeprefix("torch.")
    if "compiled" in settings.engine:
        from torch._inductor import config

        config.freezing = True  # as PyTorch's pages on CPU inference advise
        module = torch.compile(module)

    def run(inputs):
        with torch.no_grad():
            return (
                module(**{n: tensor(n, value, kind) for n, value in inputs.items()}, return_dict=False)[0]
                .float()
                .numpy()
            )

    return Opened(run, precision)


def tensor(name, value, kind):
    """An input as the module takes it: floats of its own type, but for the timestep."""
    found = torch.from_numpy(value)
    if found.is_floating_point() and name != "timestep":
        found = found.to(kind)
    return found.to(memory_format=torch.channels_last) if found.ndim == 4 else found


def prepare(_folder: Path, _engine: str) -> None:
    """Nothing: the module is quantized when it is opened."""


if __name__ == "__main__":
    main(opened, prepare)
