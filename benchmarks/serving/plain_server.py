"""What people write first: a pipeline of diffusers behind FastAPI, one request at a time behind a lock.

    python -m benchmarks.serving.plain_server --model examples/mnist-ddpm-32 --port 8001                  # float, torch
    python -m benchmarks.serving.plain_server --model examples/mnist-ddpm-32 --engine model.pt --port 8001

It answers the same bodies as `dq-serve` does, as far as the load asks for them.
"""

from __future__ import annotations

import argparse
import base64
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from dq_deploy.models.pipeline import PipelineCall, denoiser_name, open_pipeline
from dq_deploy.open_engine import open_engine
from dq_deploy.pipelines.draw import draw_images
from dq_deploy.pipelines.grid import bytes_from_unit
from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser


def create_app(pipeline: Any) -> FastAPI:
    """One route, one lock."""
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/images/generations")
    def generations(body: dict[str, Any]) -> dict[str, Any]:
        width, height = map(int, body["size"].split("x"))
        is_text = "prompt" in pipeline.__call__.__annotations__
        call = PipelineCall(
            prompts=(body["prompt"],) if is_text else (),
            labels=None if is_text else (int(body["prompt"]),),
            steps=body["steps"],
            seed=body["seed"],
            height=height,
            width=width,
            count=body.get("n", 1),
        )
        with lock:
            images = draw_images(pipeline, call).images
        return {"data": [{"b64_json": base64.b64encode(_png(image)).decode()} for image in images]}

    return app


def _png(image: Any) -> bytes:
    from dq_deploy.serve.orders import PictureFormat
    from dq_deploy.serve.painting import picture_of

    return picture_of(bytes_from_unit(image).transpose(1, 2, 0), 0, PictureFormat()).data


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", type=Path, help="integers in the denoiser's place; without it the float model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    with ExitStack() as stack:
        denoiser = None
        if given.engine is not None:
            denoiser = IntegerDenoiser(stack.enter_context(open_engine(given.engine, threads=given.threads)))
        pipeline = open_pipeline(given.model, denoiser=denoiser)
        assert denoiser_name(pipeline)
        uvicorn.run(create_app(pipeline), port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
