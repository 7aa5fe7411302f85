"""Integer layers by ranges alone: where training begins, and all that method minmax does."""

from __future__ import annotations

from collections.abc import Mapping

from dq_deploy.calibration.sharding import Workers
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.assembly import build_layer
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.progress import Progress, ProgressCallback, silent
from dq_deploy.methods.ranges.scales import quantized_weight
from dq_deploy.methods.ranges.step_ranges import LayerRanges, steps_of
from dq_deploy.record import Layer


def initial_layers(
    prepared: Prepared,
    ranges: Mapping[str, LayerRanges],
    options: SharedOptions,
    *,
    search: bool,
    progress: ProgressCallback = silent,
    workers: Workers | None = None,
) -> dict[str, Layer]:
    """Layers by ranges alone, without training.

    Args:
        prepared: the folded float model.
        ranges: of its layers.
        options: groups of steps, symmetric activations or not, zero points of weights or not, output tables or not.
        search: shrink activation ranges by L2.4 search.
        progress: called after each layer.
        workers: that search a share of the layers each.
    """
    workers = workers or Workers()
    total = sum(layer.weight.size for layer in prepared.layers.values())
    groups = options.groups_of_steps(steps_of(ranges))
    asymmetric = bool(options.asymmetric_weights)
    done = workers.tally()

    def searched(name: str) -> Layer:
        layer = prepared.layers[name]
        found = build_layer(
            layer,
            tables=ranges[name].input_tables(
                layer, groups=groups, symmetric=options.symmetric_activations, search=search
            ),
            weights=[quantized_weight(w, layer.weight_bits, asymmetric=asymmetric) for w in layer.weight_parts()],
            bias=layer.bias,
            output=ranges[name].output_table(groups) if options.outputs else None,
            symmetric=options.symmetric_activations,
        )
        progress(Progress(stage="weights", done=done.add(layer.weight.size), total=total))
        return found

    return workers.split({name: layer.weight.size for name, layer in prepared.layers.items()}, searched)
