"""The option of every command that opens an engine: whether its file must be what was written."""

from __future__ import annotations

from typing import Annotated

import typer

HashCheck = Annotated[
    bool,
    typer.Option(
        "--hash-check/--no-hash-check",
        help="Refuse a file whose content is not what was written; takes half a second for 1 GB.",
    ),
]
