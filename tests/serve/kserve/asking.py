"""Bodies of infer requests for the small models."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    """An input of JSON."""
    values = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}


def body(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An infer request of JSON."""
    return {"inputs": list(inputs), **more}


def labels_body(labels: list[int], seeds: list[int], steps: int = 2, **more: Any) -> dict[str, Any]:
    """A request for digits."""
    return body(
        tensor("LABEL", "INT64", labels), tensor("SEED", "INT64", seeds), tensor("STEPS", "INT32", [steps]), **more
    )


def text_body(prompts: list[str], seeds: list[int], *inputs: dict[str, Any], steps: int = 2) -> dict[str, Any]:
    """A request for pictures of prompts."""
    own = [tensor("PROMPT", "BYTES", prompts), tensor("SEED", "INT64", seeds), tensor("STEPS", "INT32", [steps])]
    return body(*own, *inputs)


def feeds(rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the denoiser with ten classes."""
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((rows, 1, 8, 8)).astype(np.float32),
        "timestep": np.full(rows, 150, np.float32),
        "class_labels": np.arange(rows) % 10,
    }


DATATYPES = {"sample": "FP32", "timestep": "FP32", "class_labels": "INT64"}


def feeds_body(rows: int = 1, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A request for one call of that denoiser."""
    return body(*(tensor(name, DATATYPES[name], values) for name, values in feeds(rows, seed).items()), **more)


def binary(found: dict[str, np.ndarray], **more: Any) -> tuple[bytes, bytes]:
    """JSON and the tensors behind it."""
    head = {
        "inputs": [
            {
                "name": name,
                "datatype": DATATYPES[name],
                "shape": list(values.shape),
                "parameters": {"binary_data_size": values.nbytes},
            }
            for name, values in found.items()
        ],
        **more,
    }
    return json.dumps(head).encode(), b"".join(values.tobytes() for values in found.values())


def values_of(output: dict[str, Any], dtype: Any = np.float32) -> np.ndarray:
    """An output of JSON."""
    return np.array(output["data"], dtype).reshape(output["shape"])


def png(answer: dict[str, Any]) -> np.ndarray:
    """Pixels [H, W, C] of the one picture that the images API answered."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))
    return pixels[..., None] if pixels.ndim == 2 else pixels
