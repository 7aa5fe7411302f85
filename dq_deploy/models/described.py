"""Whether a module is what its configuration describes: a record is rebuilt from that, and holds nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError
from dq_deploy.models.family import build_denoiser
from dq_deploy.models.load.state import few

if TYPE_CHECKING:
    import torch

    from dq_deploy.models.layers import Denoiser

_RIGHT_AS_THEY_ARE = ("training", "gradient_checkpointing", "lora_scale")
"""Settings of a module that change nothing of what it computes, or are looked at by themselves."""

_SAMPLED = 61
"""Of a large tensor every so many-th number is hashed, and the bits of all are summed: one changed number shows."""

_SMALL = 4096

_PLAIN = (bool, int, float, str, type(None))

_SAME_ATTENTION = (
    {"AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"},
    {
        *("AttnAddedKVProcessor", "AttnAddedKVProcessor2_0"),
        *("SlicedAttnAddedKVProcessor", "XFormersAttnAddedKVProcessor"),
    },
)
"""Processors of diffusers that compute the same attention in other ways."""


def check_as_described(denoiser: Denoiser) -> None:
    """Refuse a module that was changed behind its configuration, for a record would be of the unchanged one.

    Raises:
        ModelError: it holds adapters, as LoRA's, has other layers, settings, hooks or types, or is in training mode;
            says what to do.
    """
    module = denoiser.module
    found = _adapters(module)
    if found:
        raise ModelError(
            f"the denoiser holds adapters ({few(found)}), for which a record has no place; merge them into its weights "
            "with `fuse_lora()` and then `unload_lora()` of the module, or leave them out with `unload_lora()` alone"
        )
    twin = build_denoiser(denoiser.family, denoiser.config, device="meta")
    if type(module).__qualname__ != type(twin).__qualname__:
        raise ModelError(
            f"the denoiser is a {type(module).__name__}, expected a {type(twin).__name__} as its configuration says; "
            "give the model of diffusers itself"
        )
    _check_tensors(module, twin)
    changed = next(_changes(module, twin), None)
    if changed is not None:
        raise ModelError(
            f"the denoiser {changed}, which its configuration does not say, so the record's would compute something "
            "else; undo it, and quantize then"
        )
    if module.training:
        raise ModelError("the denoiser is in training mode, expected eval mode; call its `eval()`")


def weights_sample(module: torch.nn.Module) -> str:
    """SHA-256 over a part of every tensor of a module and the sum of its bits, which is cheaper than a hash of all.

    Adapters merged into weights change it, and so does training, or one number that is set by hand.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        flat = value.detach().contiguous().flatten()
        small = flat.numel() <= _SMALL
        digest.update(name.encode())
        digest.update(_bytes(flat if small else flat[::_SAMPLED]))
        if not small:
            raw = flat.view(torch.uint8)
            words = raw[: len(raw) // 8 * 8].view(torch.int64)
            digest.update(f"{int(words.sum())} {raw[8 * len(words) :].tolist()}".encode())
    return digest.hexdigest()


def with_hash_of_weights(denoiser: Denoiser) -> Denoiser:
    """The denoiser; where its weights are no longer those of its source, with a hash of what they are now."""
    if denoiser.loaded_weights in (None, weights_sample(denoiser.module)):
        return denoiser
    digest = hashlib.sha256(denoiser.source_sha256.encode())
    for name, value in sorted(denoiser.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(value))
    return replace(denoiser, source_sha256=digest.hexdigest(), loaded_weights=None)


def _bytes(value: torch.Tensor) -> memoryview:
    import torch

    return memoryview(value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())


def _adapters(module: torch.nn.Module) -> set[str]:
    """Names of layers that a library of adapters put in the place of a module's own."""
    return {
        name or type(child).__name__
        for name, child in module.named_modules()
        if type(child).__module__.partition(".")[0] == "peft"
    }


def _check_tensors(module: torch.nn.Module, twin: torch.nn.Module) -> None:
    """Every parameter and buffer there, no other, of the types and shapes of the configuration, with values."""
    own, wanted = module.state_dict(), twin.state_dict()
    for words, names in (("lacks", set(wanted) - set(own)), ("has", set(own) - set(wanted))):
        if names:
            raise ModelError(
                f"the denoiser {words} {few(names)}, not as its configuration says; give the model as it was loaded"
            )
    for name, value in own.items():
        if value.is_meta:
            raise ModelError(f"the denoiser has no values for {name} (device meta), expected the weights; load them")
        if (value.dtype, value.shape) != (wanted[name].dtype, wanted[name].shape):
            raise ModelError(
                f"{name} of the denoiser is {value.dtype}{tuple(value.shape)}, expected "
                f"{wanted[name].dtype}{tuple(wanted[name].shape)}; float models are quantized in float32"
            )


def _changes(module: torch.nn.Module, twin: torch.nn.Module) -> Iterator[str]:
    """What was changed in a module of the right tensors, as `has a forward hook in conv_in`."""
    others = dict(twin.named_modules())
    for name, child in module.named_modules():
        place = f"in {name}" if name else "at its top"
        other = others.get(name)
        if other is None or type(child).__qualname__ != type(other).__qualname__:
            yield f"has a {type(child).__name__} {place}"
            continue
        if child._forward_hooks or child._forward_pre_hooks:
            yield f"has a forward hook {place}"
        if "forward" in vars(child):
            yield f"has a forward of its own {place}"
        if _other_attention(getattr(child, "processor", None), getattr(other, "processor", None)):
            yield f"has the attention processor {type(child.processor).__name__} {place}"
        mine, theirs = _settings(child), _settings(other)
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                yield f"has {key}={mine.get(key)!r} {place}"


def _other_attention(mine: object, theirs: object) -> bool:
    """Whether an attention's processor computes something else than the one of its configuration."""
    if type(mine) is type(theirs):
        return False
    of_diffusers = all(type(one).__module__.partition(".")[0] == "diffusers" for one in (mine, theirs))
    names = {type(mine).__name__, type(theirs).__name__}
    return not (of_diffusers and any(names <= same for same in _SAME_ATTENTION))


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    """What a module keeps in plain values, under the names that are not private."""
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in _RIGHT_AS_THEY_ARE and isinstance(value, _PLAIN)
    }
