"""Modules that stand where diffusers has a layer, with a layer inside that every room knows.

- A one-dimensional convolution, as sound models have them, is run as a two-dimensional one of an image one row high:
  a Conv1d of [B, C, length] is the same sums as a Conv2d of [B, C, 1, length].
- A layer that its owner calls by the name of its argument, as AnimateDiff's, is called by position.

The record, the simulation, each engine and the proof then see a plain layer, at the path of what stands in with
`.layer` behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

INNER = "layer"


class RowConvolution(torch.nn.Module):
    """Stands where a Conv1d stood.

    Args:
        old: the Conv1d, whose weights are taken over; they get an axis of one for the height.
    """

    def __init__(self, old: torch.nn.Conv1d) -> None:
        super().__init__()
        assert not isinstance(old.padding, str)
        self.layer = torch.nn.Conv2d(
            old.in_channels,
            old.out_channels,
            (1, *old.kernel_size),
            (1, *old.stride),
            (0, *old.padding),
            (1, *old.dilation),
            old.groups,
            old.bias is not None,
        )
        self.layer.weight = torch.nn.Parameter(old.weight.unsqueeze(2))
        self.layer.bias = old.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C_out, length out] of [B, C_in, length]."""
        y: torch.Tensor = self.layer(x.unsqueeze(2))
        return y.squeeze(2)


class CalledByName(torch.nn.Module):
    """Stands where a layer stood that is called by the name of its argument."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What the layer gives."""
        y: torch.Tensor = self.layer(input)
        return y


def with_rows(module: torch.nn.Module) -> torch.nn.Module:
    """The same module with a `RowConvolution` in the place of each Conv1d that pads with zeros, changed in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Conv1d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                setattr(parent, name, RowConvolution(child))
    return module


class InnerState(Mapping[str, torch.Tensor]):
    """A float model's tensors by the names of a module in which something stands in for layers.

    Args:
        state: by diffusers' names.
        module: with what stands in.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], module: torch.nn.Module) -> None:
        named: dict[str, str] = {}
        self._rows: set[str] = set()
        for name, child in module.named_modules():
            if isinstance(child, (RowConvolution, CalledByName)):
                named |= {f"{name}.{last}": f"{name}.{INNER}.{last}" for last in ("weight", "bias")}
            if isinstance(child, RowConvolution):
                self._rows.add(f"{name}.{INNER}.weight")
        self._state = state
        self._own = {named.get(name, name): name for name in state}

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor; a Conv1d's weight with an axis of one for the height."""
        value = self._state[self._own[name]]
        return value.unsqueeze(2) if name in self._rows else value

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the state."""
        return iter(self._own)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._own)
