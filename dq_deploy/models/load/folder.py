"""A float denoiser from what people have on disk: configuration, scheduler and weights, without running code of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls.output_shapes import with_outputs
from dq_deploy.models.described import weights_sample
from dq_deploy.models.family import build_denoiser, default_call, family_of
from dq_deploy.models.layers import Denoiser
from dq_deploy.models.load.component_class import checked_class, todays_config
from dq_deploy.models.load.json_file import check_finite, read_json
from dq_deploy.models.load.pipeline_folder import DenoiserPlace, find_denoiser, is_pipeline, size_beside
from dq_deploy.models.load.scheduler_file import scheduler_config_of
from dq_deploy.models.load.single_file import is_weight_file, needs_config, single_file_state
from dq_deploy.models.load.state import FileState, fit_state
from dq_deploy.models.load.weight_files import WeightFiles, find_weights

if TYPE_CHECKING:
    import torch


def load_folder(
    path: Path,
    *,
    variant: str | None = None,
    component: str | None = None,
    config: Path | None = None,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Denoiser:
    """See `dq_deploy.models.load_model`."""
    from dq_deploy.models.families.stand_in import InnerState

    single = is_weight_file(path)
    place = _place_of(path, single=single, component=component, config=config)
    file = place.folder / "config.json"
    read = _config_of(file)
    scheduler = scheduler_config_of(place.folder)
    try:
        family = family_of(read)
        weights = WeightFiles(name=path, files=(path,)) if single else find_weights(place.folder, variant)
        module = build_denoiser(family, read, device="meta")
    except ModelError as error:
        folder = str(place.folder)
        raise ModelError(str(error) if folder in str(error) else f"{folder}: {error}") from error
    state: Mapping[str, torch.Tensor] = (
        single_file_state(path, read, module.state_dict()) if single else FileState(weights)
    )
    fit_state(module, InnerState(state, module), str(weights.name))
    call = with_outputs(default_call(read, {**size_beside(place, read), **sizes}), module)
    return Denoiser(
        family=family,
        module=module,
        config=read,
        call=call,
        scheduler_config=scheduler,
        source=str(path),
        source_sha256=_sha256([*weights.files, file]),
        variant=variant,
        component=place.component,
        config_source=None if config is None else str(config),
        loaded_weights=weights_sample(module),
    )


def describe_folder(
    path: Path,
    *,
    component: str | None = None,
    config: Path | None = None,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Denoiser:
    """See `dq_deploy.models.describe_model`."""
    place = _place_of(path, single=is_weight_file(path), component=component, config=config)
    file = place.folder / "config.json"
    read = _config_of(file)
    try:
        family = family_of(read)
        module = build_denoiser(family, read, device="meta")
        call = default_call(read, {**size_beside(place, read), **sizes})
    except ModelError as error:
        raise ModelError(f"{place.folder}: {error}") from error
    return Denoiser(
        family=family,
        module=module,
        config=read,
        call=call,
        scheduler_config=None,
        source=str(path),
        source_sha256=_sha256([file]),
        component=place.component,
        config_source=None if config is None else str(config),
    )


def _config_of(file: Path) -> dict[str, Any]:
    """A denoiser's configuration as today's diffusers takes it.

    Raises:
        ModelError: the file is none of a float denoiser.
    """
    given = read_json(file)
    check_finite(given, file)
    return todays_config(given, checked_class(given, str(file)))


def load_recorded(
    provenance: Mapping[str, Any], path: Path | None, component: str | None, sizes: Mapping[str, int]
) -> Denoiser:
    """See `dq_deploy.models.float_model_of`."""
    words = {name: provenance.get(name) for name in ("source", "variant", "component", "config")}
    given = {name: value for name, value in words.items() if isinstance(value, str) and value}
    if path is None and "source" not in given:
        raise ModelError("the record does not say which float model it was made from; give the model's folder")
    place = Path(given["source"]) if path is None else path
    single = is_weight_file(place)
    if component is None and (single or is_pipeline(place)):
        component = given.get("component")
    return load_folder(
        place,
        variant=given.get("variant"),
        component=component,
        config=Path(given["config"]) if single and "config" in given else None,
        sizes=sizes,
    )


def _place_of(path: Path, *, single: bool, component: str | None, config: Path | None) -> DenoiserPlace:
    """The folder with the denoiser's configuration."""
    if not single and config is not None:
        raise ModelError(
            f"`config` {config} goes with a single file of weights, and {path} is none; leave it out, or give the file"
        )
    if not single:
        return find_denoiser(path, component)
    if config is None:
        raise needs_config(path)
    return find_denoiser(config, component)


def _sha256(files: list[Path]) -> str:
    """Over the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
