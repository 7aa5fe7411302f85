"""Runs a folder in Optimum and keeps what it draws: a script of its own, for an environment without dq_deploy.

Usage: python optimum_side.py onnxruntime|openvino FOLDER INPUTS.npz OUTPUTS.npz

INPUTS holds the embeddings and latents of a call by argument; `settings` in it is JSON of the other arguments, and
`prompt`, where it is there, a text that is drawn as well. OUTPUTS gets `latents`, drawn from the embeddings, and
`pictures` and `text_latents`, drawn from the text.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch


def opened(tool: str, folder: str) -> Any:
    """The pipeline, as the command that wrote the folder says."""
    if tool == "onnxruntime":
        from optimum.onnxruntime import ORTDiffusionPipeline

        return ORTDiffusionPipeline.from_pretrained(folder)
    from optimum.intel import OVDiffusionPipeline

    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "CPU_RUNTIME_CACHE_CAPACITY": "0"}
    return OVDiffusionPipeline.from_pretrained(folder, ov_config=settings)


def main(tool: str, folder: str, inputs: str, outputs: str) -> None:
    """Draw and save."""
    pipeline = opened(tool, folder)
    pipeline.set_progress_bar_config(disable=True)
    given = dict(np.load(inputs))
    settings = json.loads(str(given.pop("settings")))
    prompt = given.pop("prompt", None)
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    made = {"latents": pipeline(**tensors, **settings, output_type="latent").images.numpy()}
    if prompt is not None:
        text = {"prompt": [str(prompt)] * len(tensors["latents"]), "latents": tensors["latents"], **settings}
        made["text_latents"] = pipeline(**text, output_type="latent").images.numpy()
        made["pictures"] = np.asarray(pipeline(**text, output_type="np").images)
    np.savez(outputs, **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
