"""Which layers read a concatenation, and where its second tensor begins: skip connections of a UNet, joined streams."""

from __future__ import annotations

from dq_deploy.models.capture.channels import channel_axis, follow
from dq_deploy.models.capture.folds import FoldSearch


def skip_splits(search: FoldSearch) -> dict[str, int]:
    """Channels of the first tensor, by the path of each layer that reads a concatenation along its channels.

    Norms, activations and resizing may stand between, which keep channels apart. Left out is what depends on the
    timestep and pooled conditions alone: sinusoids are concatenated too.
    """
    graph = search.graph
    found: dict[str, int] = {}
    for value in graph.values:
        if value.kind != "aten.cat" or search.dependence.of_pooled(value):
            continue
        axis = value.args[1] if len(value.args) > 1 else value.kwargs.get("dim", 0)
        axis %= len(value.shape)
        first = value.sources[0].shape[axis]
        if axis == 0 or first == value.shape[axis]:
            continue
        for layer in follow(graph, value, axis, search.kind_of, linear=False).layers:
            if channel_axis(layer.args[0], search.kind_of(layer)) != 0:
                found.setdefault(layer.path, first)
    order = {layer.path: layer.number for layer in reversed(graph.layers)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))
