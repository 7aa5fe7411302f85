"""Where an engine and the training simulation part, and whether float rounding alone parts them as far.

Each layer of an engine may be right and each float operation within its rounding, and the output may still be far from
the simulation's: one code flips on the last bit of a float, and quantizers spread it. How far that goes is measured:
the simulation is run again with every layer's input moved by a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_deploy.models import call_of_record, output_specs
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record
from dq_deploy.verify.inputs import Batch, Finals
from dq_deploy.verify.output.difference import REQUIRED_MARGIN_DB, StepOutput, run_module, simulation
from dq_deploy.verify.output.float_path import relative_gap
from dq_deploy.verify.output.kept_tensors import KeptTensors

MOVED_BY = 2.0**-21
"""Share of itself by which each value that enters a layer is moved: eight units in the last place of float32."""

DRAWS = 3
ALLOWED = 100.0
"""How many times the mean square error that rounding makes an engine may be off by; single flips come as they like."""

OPENED = 1e-3
"""Gap of a layer's input, as a share of its range, that no rounding of its own makes: a code in front of it flipped."""


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Of the step with the least margin.

    Attributes:
        layer: the first in execution order whose input in the engine is not the simulation's but for rounding; empty
            where there is none.
        gap: of its input, as a share of the largest magnitude.
        explained: whether the output is off by no more than what moving the layers' inputs by rounding does.
        error: mean square error of the engine's output against the simulation's.
        noise: the same of the simulation whose layers' inputs were moved.
    """

    layer: str
    gap: float
    explained: bool
    error: float
    noise: float

    def text(self) -> str:
        """In words, behind a comma."""
        where = (
            f"first at the input of layer {self.layer} by {self.gap:.1g} of its range" if self.layer else "at no layer"
        )
        return (
            f"they part {where}; the mean square error is {self.error:.2g}, and moving each layer's input by "
            f"{MOVED_BY:.1g} of itself makes {self.noise:.2g}"
        )


def find_parting(
    record: Record,
    batches: Sequence[Batch],
    kept: KeptTensors,
    finals: Sequence[Finals],
    step: StepOutput,
    *,
    requantized: bool,
) -> Parting:
    """Follow the engine and the simulation through the first batch at a step.

    Args:
        record: the quantized denoiser.
        batches: the inputs.
        kept: inputs and outputs of the engine's layers.
        finals: the engine's outputs.
        step: which one, and of which output its errors are: the others' do not count, whose numbers may be larger.
        requantized: as of `output.simulation`.
    """
    index = next(i for i, batch in enumerate(batches) if step.bucket in batch.buckets)
    batch, values = batches[index], kept.of(index)
    output = [spec.name for spec in output_specs(call_of_record(record))].index(step.output)
    module = simulation(record, requantized=requantized)
    seen: dict[str, float] = {}
    hooks = _hooked(module, record, lambda name, x: _note(seen, values, name, x))
    trained = run_module(module, [batch])[0][output]
    for hook in hooks:
        hook.remove()
    noise = 0.0
    for draw in range(DRAWS):
        generator = np.random.default_rng(draw)
        hooks = _hooked(module, record, lambda _name, x, g=generator: _moved(x, g))
        moved = run_module(module, [batch])[0][output]
        noise = max(noise, float(np.mean((moved - trained).astype(np.float64) ** 2)))
        for hook in hooks:
            hook.remove()
    error = float(np.mean((finals[index][output].astype(np.float64) - trained) ** 2))
    layer = next((name for name, gap in seen.items() if gap > OPENED), "")
    return Parting(layer=layer, gap=seen.get(layer, 0.0), explained=error <= ALLOWED * noise, error=error, noise=noise)


def lowest_parting(
    record: Record,
    batches: Sequence[Batch],
    kept: KeptTensors,
    finals: Sequence[Finals],
    steps: Sequence[StepOutput],
    *,
    requantized: bool,
) -> Parting | None:
    """The parting at the step with the least margin, None where every margin is large enough or unknown.

    Args:
        record: as of `find_parting`, and so all but `steps`.
        batches: the inputs.
        kept: inputs and outputs of the engine's layers.
        finals: the engine's outputs.
        steps: errors of the output.
        requantized: as of `output.simulation`.
    """
    low = [
        (s.margin_db, i) for i, s in enumerate(steps) if s.margin_db is not None and s.margin_db < REQUIRED_MARGIN_DB
    ]
    if not low:
        return None
    return find_parting(record, batches, kept, finals, steps[min(low)[1]], requantized=requantized)


def _hooked(module: Any, record: Record, see: Any) -> list[Any]:
    """Hooks in front of every layer; what `see` returns, if anything, takes its input's place."""

    def hook_of(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...]) -> Any:
            changed = see(name, args[0])
            return None if changed is None else (changed, *args[1:])

        return hook

    children = {name.removeprefix("denoiser."): child for name, child in module.named_modules()}
    return [children[name].register_forward_pre_hook(hook_of(name)) for name in record.layers if name in children]


def _note(seen: dict[str, float], values: Mapping[str, tuple[Array, Array]], name: str, x: Any) -> None:
    if name in values:
        seen[name] = relative_gap(values[name][0], x.numpy())


def _moved(x: Any, generator: np.random.Generator) -> Any:
    import torch

    signs = torch.from_numpy(generator.choice(np.array([-1, 1], np.float32), tuple(x.shape)))
    return x * (1 + np.float32(MOVED_BY) * signs)
