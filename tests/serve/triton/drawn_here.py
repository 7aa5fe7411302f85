"""What `dq-sample` draws, as bytes: what a server is held against."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.models.pipeline.open import sized_as_called
from dq_deploy.pipelines.draw import draw_images
from dq_deploy.pipelines.grid import bytes_from_unit
from dq_deploy.pipelines.quantized import open_quantized, pipeline_around


def drawn_here(engine: Path, folder: Path | None, asked: PipelineCall):
    """Bytes [N, H, W, C] of what `dq-sample` draws, one picture at a time."""
    with ExitStack() as stack:
        quantized = open_quantized(None, engine, stack, threads=1)
        pipeline = pipeline_around(quantized, folder, asked)
        if folder is None:
            asked = sized_as_called(asked, pipeline.denoiser.config, quantized.call)
        drawn = draw_images(pipeline, asked, batch=1)
    return np.moveaxis(bytes_from_unit(drawn.images), 1, -1)
