"""Each layer's piece of the engine fed with extreme values at every step: what real inputs may never reach.

Real activations may leave a range end, a channel or a step untouched, and a wrong zero point or weight there would
stay unseen. The pieces are cut from the shipped file and run by the same engine.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.graph.writing.steps import TIMESTEP
from dq_deploy.manifest.values import ManifestLayer
from dq_deploy.numerics import reciprocal, table_at
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.record import Layer, Part, Record
from dq_deploy.verify.layers.compare import LayerTally, PartTensors, compare_part
from dq_deploy.verify.onnx.instrument import ShippedGraph, run_all

PROBE_ELEMENTS = 1 << 22
"""Input values of one probe run; more steps than fit run in several."""


def probe_layer(
    shipped: ShippedGraph,
    record: Record,
    name: str,
    entry: ManifestLayer,
    shapes: Mapping[str, tuple[int, ...]],
    tally: LayerTally,
    *,
    seed: int,
    mixed: bool,
) -> None:
    """Compare one layer's codes and accumulators at every step bucket for inputs beyond and between its codes.

    Args:
        shipped: the engine's file.
        record: the quantized denoiser.
        name: module path of the layer.
        entry: the layer's manifest entry.
        shapes: shape of each part's input without the batch axis.
        tally: its `probe` is added to.
        seed: of the random values.
        mixed: whether a batch may hold several steps.
    """
    layer = record.layers[name]
    for index, part_entry in enumerate(entry.parts or ()):
        x_name = str(part_entry.input)
        if x_name not in shapes:
            continue
        shape = shapes[x_name]
        names = [str(part_entry.codes)]
        if part_entry.accumulator is not None and part_entry.accumulator in shipped.producer:
            names.append(part_entry.accumulator)
        inputs: dict[str, tuple[int, list[int | str]]] = {x_name: (1, ["B", *shape])}
        try:
            runner = shipped.open(shipped.piece(inputs, names))
        except DqError as error:
            tally.problem(f"probe of the layer cannot be loaded: {error}")
            continue
        group = max(1, PROBE_ELEMENTS // int(np.prod(shape))) if mixed else 1
        with runner:
            for start in range(0, record.steps, group):
                buckets = np.arange(start, min(start + group, record.steps))
                x = extreme_inputs(layer, layer.parts[index], shape, buckets, seed)
                feeds: dict[str, Array] = {x_name: x, TIMESTEP: record.timesteps[buckets]}
                got = run_all(runner, feeds)
                read = PartTensors(x=x, codes=got[names[0]], accumulator=got[names[1]] if len(names) > 1 else None)
                compare_part(record, layer, index, part_entry, read, buckets, tally, probe=True)


def extreme_inputs(layer: Layer, part: Part, shape: tuple[int, ...], buckets: Array, seed: int) -> F32:
    """Inputs whose codes cover the whole range at each step: inside, on ties, at and beyond both ends.

    Half of the values fall on whole and half codes, the rest anywhere from two codes below to two above the range;
    one in a hundred is huge. The last sample is made so that one output channel gets the largest sum it can.

    Args:
        layer: whose input it is.
        part: which slice.
        shape: of one sample.
        buckets: [B] step bucket of each sample.
        seed: of the random values.

    Returns:
        [B, *shape] float32.
    """
    generator = np.random.default_rng([seed, len(buckets), *shape])
    tail = (-1,) + (1,) * len(shape)
    z = table_at(part.zero_point, buckets).reshape(tail).astype(np.float64)
    low, high = layer.q_min - z - 2, layer.q_max - z + 2
    wide = low + (high - low) * generator.random((len(buckets), *shape))
    halves = np.rint(wide * 2) / 2
    target = np.where(generator.random(wide.shape) < 0.5, halves, wide)
    target = np.where(generator.random(wide.shape) < 0.01, np.sign(wide) * 1e30, target)
    channels = [1] * (len(shape) + 1)
    axis = 1 if layer.kind == "conv2d" else len(shape)
    channels[axis] = -1
    q = part.q_weight(int(part.group_of_step[0])).astype(np.int64)
    if layer.groups == 1:
        row = q[int(np.abs(q).reshape(len(q), -1).sum(axis=1).argmax())].reshape(q.shape[1], -1).sum(axis=1)
        target[-1:] = np.where(row.reshape(channels) > 0, high[-1:], low[-1:])
    multiplier = (reciprocal(table_at(part.scale, buckets))[:, None] * part.pre[None, :]).astype(np.float64)
    spread = [len(buckets)] + [1] * len(shape)
    spread[axis] = len(part.pre)
    with np.errstate(over="ignore"):
        x = target / multiplier.reshape(spread)
    return np.clip(x, -1e37, 1e37).astype(np.float32)
