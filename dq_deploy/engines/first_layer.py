"""Where values that are not finite begin in an ONNX file: looked for only when an output holds some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest
    from dq_deploy.numerics.arrays import Array

AT_ONCE = 48
"""Inner tensors that one run returns; the next are asked for only where these are finite."""

RunWith = Callable[[Sequence[str]], Mapping[str, "Array"]]
"""From names of inner tensors to their values, for the inputs in question."""


def first_layer(path: Path, manifest: EngineManifest | None, run_with: RunWith) -> str:
    """The end of a sentence: which layer is the first whose input is not finite, by its place in the graph.

    Args:
        path: the ONNX file.
        manifest: names the layers and their inputs; without it nothing is known.
        run_with: runs the engine once with inner tensors shown.

    Returns:
        Text that begins with a semicolon, or an empty string where this cannot be found out.
    """
    layers = {} if manifest is None else _layers_by_input(manifest)
    names = [name for name in _in_order(path) if name in layers]
    for start in range(0, len(names), AT_ONCE):
        chunk = names[start : start + AT_ONCE]
        values = run_with(chunk)
        for name in chunk:
            if not np.isfinite(values[name]).all():
                return f"; the first layer whose input is not finite is {layers[name]}"
    return "; the input of every quantized layer is finite, so it arises behind them" if names else ""


def _layers_by_input(manifest: EngineManifest) -> dict[str, str]:
    found: dict[str, str] = {}
    for layer in manifest.layers:
        for part in layer.parts or ():
            if part.input is not None:
                found.setdefault(part.input, layer.name)
    return found


def _in_order(path: Path) -> list[str]:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return [name for node in graph.node for name in node.output if name]
