"""The option of every command that runs the native engine: what attention's two products are computed in."""

from __future__ import annotations

from typing import Annotated

import typer

Attention = Annotated[
    str | None,
    typer.Option(
        "--attention",
        help="What the native engine computes attention's products in: float32 (the default), bf16, or int8 of a model "
        "quantized with --attention int8.",
    ),
]
