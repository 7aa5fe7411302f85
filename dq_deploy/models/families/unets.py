"""What the UNet families do alike: a checked module, its inputs and output, blocks, and reasons against a fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError, raise_if_out_of_memory
from dq_deploy.models.layers import (
    Block,
    FoldSite,
    LayerSite,
    check_layers_supported,
    first_line,
    is_quantizable,
)
from dq_deploy.models.sizes import HEIGHT, WIDTH
from dq_deploy.record.model_config import value_of

if TYPE_CHECKING:
    import torch


def checked_module(
    name: str,
    make: Callable[[], torch.nn.Module],
    walk: Callable[[torch.nn.Module], object],
    *,
    device: str,
    also_supported: tuple[type, ...] = (),
) -> torch.nn.Module:
    """The module that a configuration describes, eval mode, no gradients; checked by a run without values.

    Args:
        name: of diffusers' class.
        make: builds it.
        walk: runs it.
        device: where its weights are.
        also_supported: types of layers that are allowed beside the usual ones.

    Raises:
        ModelError: diffusers cannot build it, or it has layers that are not supported, or it cannot run.
    """
    import torch

    try:
        with torch.device(device):
            module = make()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"config.json does not describe a {name} that can be built: {first_line(error)}") from error
    check_layers_supported(module, also_supported)
    try:
        walk(module)
    except ModelError:
        raise
    except Exception as error:  # diffusers checks little of its configuration: torch meets what is wrong
        raise_if_out_of_memory(error)
        raise ModelError(
            f"config.json describes a model that cannot run at its sample_size: {first_line(error)}"
        ) from error
    return module.eval().requires_grad_(False)


def sizes_for_check(config: Mapping[str, Any]) -> dict[str, int]:
    """Sizes at which a configuration is tried: its own, or one that every level halves evenly where it has none."""
    if value_of(config, "sample_size") is not None:
        return {}
    levels = len(config.get("block_out_channels") or (1, 1, 1, 1))
    return {HEIGHT: 2**levels, WIDTH: 2**levels}


def blocks_around(module: torch.nn.Module, kinds: tuple[type, ...], sites: Iterable[LayerSite]) -> list[Block]:
    """Modules of these kinds as blocks of the layers in them; every other layer is its own block."""
    whole = [name for name, child in module.named_modules() if isinstance(child, kinds)]
    members: dict[str, list[str]] = {}
    for site in sites:
        owner = next((name for name in whole if site.name.startswith(f"{name}.")), site.name)
        members.setdefault(owner, []).append(site.name)
    return [Block(name=name, layers=tuple(layers)) for name, layers in members.items()]


def refusals_beside(
    module: torch.nn.Module, sites: Iterable[FoldSite], refusal: Callable[[str], str]
) -> dict[str, str]:
    """Reason, by `refusal` of its name, for every quantizable layer that no fold site serves."""
    folded = {name for site in sites for name in site.consumers}
    names = [name for name, child in module.named_modules() if is_quantizable(child)]
    return {name: refusal(name) for name in names if name not in folded}
