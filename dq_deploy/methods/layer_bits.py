"""Which bits each layer gets, and which stay float."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from dq_deploy.errors import OptionError
from dq_deploy.methods.options import FLOAT_ACTIVATIONS, MinmaxOptions, SharedOptions, bits_pair
from dq_deploy.models.layers import CONDITION, EMBEDDING, FIRST, LAST, MODULATION, LayerSite


@dataclass(frozen=True, kw_only=True)
class RoleDefault:
    """Bits of the layers of one role unless told otherwise, and why.

    Attributes:
        bits: of weights and activations alike, None for float.
        reason: in words.
    """

    bits: int | None
    reason: str


ROLE_DEFAULTS: Mapping[str, RoleDefault] = MappingProxyType(
    {
        EMBEDDING: RoleDefault(bits=None, reason="time or added embedding, float by default"),
        MODULATION: RoleDefault(bits=8, reason="projection of the time embedding (modulation), 8 bits by default"),
        CONDITION: RoleDefault(
            bits=8, reason="reads the text or another condition, the same at every step, 8 bits by default"
        ),
        FIRST: RoleDefault(bits=8, reason="first layer, 8 bits by default"),
        LAST: RoleDefault(bits=8, reason="last layer, 8 bits by default"),
    }
)
"""By role of a layer (`LayerSite.role`); the other layers get the general bits.

Embeddings run once a step on a row a sample, and their codes feed every block. Modulations scale whole channels, so
coarse codes of them ruin pictures. What does not depend on the step makes the same error at every step.
"""

GENERAL_REASON = "general"
"""Reason of a layer that has the bits of most."""

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


def bits_of_sites(sites: Iterable[LayerSite], options: SharedOptions) -> dict[str, LayerBits]:
    """Bits of every quantizable layer, in the order given.

    Patterns the user gave come before the defaults of `ROLE_DEFAULTS`; `keep` replaces those that leave layers float.
    Some layers have to stay float, and what was asked to be weight-only and cannot be stays float, for a reason.

    Raises:
        OptionError: a pattern matches nothing, two options contradict each other, a layer that has to stay float was
            named, or no layer is left.
    """
    known = {site.name: site for site in sites}
    keep = () if options.keep is None else options.keep
    _check_patterns(list(known), "keep", keep)
    _check_patterns(list(known), "layer_bits", options.layer_bits)
    found = {name: _bits_of_site(site, options, keep) for name, site in known.items()}
    if all(own.is_float for own in found.values()):
        raise OptionError("every layer stays float, expected at least one to quantize; narrow keep")
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


def _bits_of_site(site: LayerSite, options: SharedOptions, keep: Sequence[str]) -> LayerBits:
    """Bits of one layer, before what weight-only layers need is asked.

    Raises:
        OptionError: two options contradict each other, or bits were asked for a layer that has to stay float.
    """
    kept, chosen = _last_match(site.name, keep), _last_match(site.name, options.layer_bits)
    if kept is not None and chosen is not None:
        raise OptionError(
            f"layer {site.name} is under keep {kept!r} and layer_bits {chosen!r}, expected one; narrow a pattern"
        )
    if site.float_reason:
        if chosen == site.name:
            raise OptionError(f"layer {site.name} is in layer_bits and has to stay float: {site.float_reason}")
        return LayerBits(name=site.name, weight_bits=None, activation_bits=None, reason=site.float_reason)
    default = ROLE_DEFAULTS.get(site.role)
    bits: tuple[int | None, int | None] = (options.weight_bits, options.activation_bits)
    reason = GENERAL_REASON
    if chosen is not None:
        bits, reason = bits_pair(chosen, options.layer_bits[chosen]), f"layer_bits {chosen!r}"
    elif kept is not None:
        bits, reason = (None, None), f"keep {kept!r}"
    elif default is not None and default.bits is None and options.keep is None:
        bits, reason = (None, None), default.reason
    elif default is not None and default.bits is not None and options.activation_bits != FLOAT_ACTIVATIONS:
        bits, reason = (default.bits, default.bits), default.reason
    return LayerBits(name=site.name, weight_bits=bits[0], activation_bits=bits[1], reason=reason)


def _weight_only_refusal(site: LayerSite, block_size: int) -> str:
    """Why a layer cannot be weight-only, or an empty string."""
    if site.kind != "linear":
        return "weight-only layers are linear, this is a convolution"
    if site.in_channels % block_size:
        return f"{site.in_channels} input channels are no multiple of the block size {block_size}"
    return ""
