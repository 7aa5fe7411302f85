"""Which bits each layer gets, and which stay float."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dq_deploy.errors import OptionError
from dq_deploy.methods.options import FLOAT_ACTIVATIONS, MinmaxOptions, SharedOptions, bits_pair
from dq_deploy.models.layers import LayerSite

DEFAULT_KEEP = ("time_embedding.*", "add_embedding.*")
"""Layers that stay float unless told otherwise: they run once a step and their codes feed every block."""

DEFAULT_EIGHT_BITS = ("conv_in", "conv_out", "*.time_emb_proj")
"""Layers at 8-bit weights and activations unless told otherwise."""

KEPT_FLOAT = "float: "
"""Start of the reason of a layer that was asked to be weight-only and cannot be."""


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """The bits of one layer.

    Attributes:
        name: module path.
        weight_bits: None where the layer stays float.
        activation_bits: likewise.
        reason: why it has these bits, in words.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    reason: str

    @property
    def is_float(self) -> bool:
        """Whether the layer stays float."""
        return self.weight_bits is None

    @property
    def is_weight_only(self) -> bool:
        """Whether the layer keeps float activations behind few-bit weights."""
        return self.activation_bits == FLOAT_ACTIVATIONS

    @property
    def is_integer(self) -> bool:
        """Whether the layer becomes an integer layer."""
        return not self.is_float and not self.is_weight_only


def _last_match(name: str, patterns: Iterable[str]) -> str | None:
    found = None
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern):
            found = pattern
    return found


def _check_patterns(names: Sequence[str], option: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise OptionError(f"{option} {pattern!r} matches no layer; see the names with `quantizable_layers`")


def bits_of_layers(names: Sequence[str], options: SharedOptions) -> dict[str, LayerBits]:
    """Bits of every quantizable layer, in the order given.

    Patterns the user gave come before the defaults; a layer under both `keep` and `layer_bits` is refused.

    Raises:
        OptionError: a pattern matches nothing, two options contradict each other, or no layer is left.
    """
    keep = () if options.keep is None else options.keep
    _check_patterns(names, "keep", keep)
    _check_patterns(names, "layer_bits", options.layer_bits)
    found: dict[str, LayerBits] = {}
    for name in names:
        kept = _last_match(name, keep)
        chosen = _last_match(name, options.layer_bits)
        if kept is not None and chosen is not None:
            raise OptionError(
                f"layer {name} is under keep {kept!r} and layer_bits {chosen!r}, expected one; narrow a pattern"
            )
        bits: tuple[int | None, int | None] = (options.weight_bits, options.activation_bits)
        reason = "general"
        if chosen is not None:
            bits, reason = bits_pair(chosen, options.layer_bits[chosen]), f"layer_bits {chosen!r}"
        elif kept is not None:
            bits, reason = (None, None), f"keep {kept!r}"
        elif options.keep is None and _last_match(name, DEFAULT_KEEP):
            bits, reason = (None, None), "time or added embedding, float by default"
        elif options.activation_bits != FLOAT_ACTIVATIONS and _last_match(name, DEFAULT_EIGHT_BITS):
            bits, reason = (8, 8), "first, last and time projection layers, 8 bits by default"
        found[name] = LayerBits(name=name, weight_bits=bits[0], activation_bits=bits[1], reason=reason)
    if all(own.is_float for own in found.values()):
        raise OptionError("every layer stays float, expected at least one to quantize; narrow keep")
    return found


def bits_of_sites(sites: Iterable[LayerSite], options: SharedOptions) -> dict[str, LayerBits]:
    """`bits_of_layers` for real layers: what was asked to be weight-only and cannot be stays float, for a reason.

    Raises:
        OptionError: as `bits_of_layers`, or no layer can be what was asked.
    """
    known = {site.name: site for site in sites}
    found = bits_of_layers(list(known), options)
    if not isinstance(options, MinmaxOptions):
        return found
    for name, own in found.items():
        why = _weight_only_refusal(known[name], options.block_size) if own.is_weight_only else ""
        if why:
            found[name] = replace(own, weight_bits=None, activation_bits=None, reason=f"{KEPT_FLOAT}{why}")
    if all(own.is_float for own in found.values()):
        raise OptionError(
            f"no layer can be weight-only in blocks of {options.block_size}, expected a linear one whose input "
            "channels are a multiple; choose another `block_size` or integer activations"
        )
    return found


def _weight_only_refusal(site: LayerSite, block_size: int) -> str:
    """Why a layer cannot be weight-only, or an empty string."""
    if site.kind != "linear":
        return "weight-only layers are linear, this is a convolution"
    if site.in_channels % block_size:
        return f"{site.in_channels} input channels are no multiple of the block size {block_size}"
    return ""
