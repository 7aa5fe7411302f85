"""The denoiser in a folder: the folder's own model, or the component of a pipeline that denoises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.load.component_class import denoises, diffusers_class, diffusers_version, is_controlnet
from dq_deploy.models.load.hub_files import check_link, snapshot_of
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.sizes import HEIGHT, WIDTH

INDEX = "model_index.json"

USUAL_NAMES = ("unet", "transformer", "prior", "decoder")
"""Names of a pipeline's denoiser, with endings as `transformer_2` and `unet_ema`."""


AUTOENCODERS = ("vae", "movq", "vqvae")
"""Components that make pictures of latents."""


@dataclass(frozen=True, kw_only=True)
class DenoiserPlace:
    """Where a denoiser lies.

    Attributes:
        folder: with its config.json.
        pipeline: the folder of the pipeline that was given, or None where the denoiser's own folder was.
        component: the denoiser's name in that pipeline, or None.
    """

    folder: Path
    pipeline: Path | None = None
    component: str | None = None


def find_denoiser(path: Path, component: str | None = None, class_name: str | None = None) -> DenoiserPlace:
    """The denoiser of a folder of diffusers.

    Args:
        path: the folder of a denoiser or of a pipeline, or of the hub's cache of one.
        component: name of the denoiser in the pipeline; None where there is one alone.
        class_name: class of the denoiser that is meant, where that is known and `component` is not given: it decides
            between several, and for a control network, if it is that of one of them alone.

    Raises:
        ModelError: `path` is no such folder, or holds no denoiser, or several and `component` names none of them.
    """
    path = snapshot_of(path)
    if not path.is_dir():
        raise ModelError(_no_folder(path))
    pipeline = path / INDEX
    check_link(pipeline)
    if pipeline.is_file():
        return _of_pipeline(path, _indexed(path), component, class_name)
    if (path / "config.json").is_file():
        if component is not None:
            raise ModelError(
                f"`component` is {component!r}, but {path} is the folder of one model; leave it out, or give the "
                "pipeline's folder"
            )
        return DenoiserPlace(folder=path)
    check_link(path / "config.json")
    found = _unindexed(path)
    if not found:
        raise ModelError(_no_model(path))
    return _of_pipeline(path, found, component, class_name)


def is_pipeline(path: Path) -> bool:
    """Whether a folder is a pipeline's, with the denoiser inside, and not a denoiser's own."""
    place = snapshot_of(path)
    return place.is_dir() and ((place / INDEX).is_file() or not (place / "config.json").is_file())


def _no_folder(path: Path) -> str:
    check_link(path)
    what = "is a file" if path.exists() else "does not exist"
    return (
        f"model folder {path} {what}; expected a diffusers folder on disk (models are never downloaded: "
        "save yours with save_pretrained and give that folder)"
    )


def _no_model(path: Path) -> str:
    """What is said of a folder without a model's configuration."""
    for name, what in (
        ("scheduler_config.json", "the folder of a scheduler"),
        ("tokenizer_config.json", "the folder of a tokenizer"),
        ("preprocessor_config.json", "the folder of an image processor"),
        ("adapter_config.json", "the folder of an adapter (LoRA)"),
        ("pytorch_lora_weights.safetensors", "a folder of LoRA factors"),
    ):
        if (path / name).is_file():
            return f"model folder {path} is {what}, expected a diffusers denoiser or pipeline folder"
    loose = sorted(found.name for end in ("safetensors", "ckpt") for found in path.glob(f"*.{end}"))
    more = f"; for {loose[0]} give that file, and as `config` a folder of its configuration" if loose else ""
    return (
        f"model folder {path} has neither config.json, model_index.json nor unet/; "
        f"expected a diffusers denoiser or pipeline folder{more}"
    )


@dataclass(frozen=True, kw_only=True)
class _Component:
    """An entry of a pipeline that denoises.

    Attributes:
        name: of the component.
        class_name: of diffusers.
        problem: why it cannot be loaded, or None.
        asked_only: whether it counts only where it is asked for by name.
    """

    name: str
    class_name: str | None = None
    problem: str | None = None
    asked_only: bool = False


def _indexed(path: Path) -> list[_Component]:
    """The denoisers that a pipeline's model_index.json names.

    Raises:
        ModelError: the file is damaged, or the pipeline has code of its own.
    """
    file = path / INDEX
    index = read_json(file)
    name = index.get("_class_name")
    if name is not None and (not isinstance(name, str) or diffusers_class(name) is None):
        given = short(name[-1] if isinstance(name, list) and name else name)
        code = next(iter(sorted(found.name for found in path.glob("*.py"))), None)
        where = f" and whose code lies beside it ({code})" if code else ""
        raise ModelError(
            f"{file} names the pipeline {given}, which diffusers {diffusers_version()} does not have{where}; code of "
            "a model is never run: give the folder of its denoiser, if that is a class of diffusers"
        )
    found = (_component(path, key, value) for key, value in index.items() if not key.startswith("_"))
    return [component for component in found if component is not None]


def _component(path: Path, name: str, entry: object) -> _Component | None:
    """An entry of model_index.json, `[library, class]`; None for what does not denoise."""
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        return None
    library, class_name = entry
    if library == "transformers" or "scheduler" in name:
        return None
    usual = _is_usual(name)
    if library != "diffusers" and not usual and not _is_of_diffusers(path / name):
        return None  # such as a safety checker, whose class would load transformers
    found = diffusers_class(class_name, library)
    if found is not None and denoises(found):
        return _Component(name=name, class_name=found.__name__, asked_only=is_controlnet(found))
    if not usual or (found is not None and library == "diffusers" and "OnnxRuntime" not in class_name):
        return None
    if found is not None:
        why = "is an ONNX graph of another export: give the pipeline it was exported from"
    elif any((path / name).glob("*.py")):
        why = "comes with its own code, which is never run: only classes of diffusers itself can be loaded"
    else:
        why = f"is a class that diffusers {diffusers_version()} does not have: give the pipeline in diffusers' format"
    return _Component(
        name=name, problem=f"{path / INDEX} names {name} {short(class_name)} of {short(library)}, which {why}"
    )


def _is_usual(name: str) -> bool:
    return any(name == known or name.startswith(f"{known}_") for known in USUAL_NAMES)


def _is_of_diffusers(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "_class_name" in read_json(folder / "config.json")


def _unindexed(path: Path) -> list[_Component]:
    """The denoisers of a pipeline without a model_index.json: folders by their usual names, an empty unet/ too."""
    found = []
    for folder in sorted(one for one in path.glob("*") if one.is_dir() and _is_usual(one.name)):
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        name = config.get("_class_name")
        kind = diffusers_class(name) if isinstance(name, str) else None
        if folder.name == "unet" or (kind is not None and denoises(kind)):
            found.append(_Component(name=folder.name, class_name=None if kind is None else kind.__name__))
    return found


def _of_pipeline(
    path: Path, denoisers: list[_Component], component: str | None, class_name: str | None
) -> DenoiserPlace:
    """The one denoiser of a pipeline, or the one that is asked for."""
    by_name = {one.name: one for one in denoisers}
    usual = [one for one in denoisers if not one.asked_only]
    meant = [one for one in denoisers if class_name is not None and one.class_name == class_name]
    if component is None and len(meant) == 1:
        component = meant[0].name
    if component is not None:
        chosen = by_name.get(component)
        if chosen is None:
            raise ModelError(_not_there(path, component, list(by_name)))
    elif len(usual) == 1:
        chosen = usual[0]
    elif usual:
        raise ModelError(
            f"{path} has {len(usual)} denoisers, {', '.join(one.name for one in usual)}; say which one is meant with "
            "`component`"
        )
    else:
        only = f"; `component` may name its {', '.join(by_name)}" if by_name else ""
        raise ModelError(f"{path / INDEX} names no denoiser (a unet, transformer or prior), expected one{only}")
    if chosen.problem is not None:
        raise ModelError(chosen.problem)
    if not (path / chosen.name / "config.json").exists():
        check_link(path / chosen.name / "config.json")
    return DenoiserPlace(folder=path / chosen.name, pipeline=path, component=chosen.name)


def _not_there(path: Path, component: str, names: list[str]) -> str:
    have = f"its denoisers are {', '.join(names)}" if names else "it has none"
    there = (path / component).is_dir() and component not in ("", ".", "..") and "/" not in component
    what = "does not denoise" if there else "is not there"
    return f"`component` is {component!r}, which {what} in {path}: {have}"


def component_of(folder: Path) -> tuple[Path, str] | None:
    """The pipeline's folder and the component's name, where a folder lies in a pipeline as one of its components."""
    index = folder.parent / INDEX
    if index.is_file():
        entry = read_json(index).get(folder.name)
        named = isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    else:
        named = folder.name in USUAL_NAMES
    return (folder.parent, folder.name) if named else None


def size_beside(place: DenoiserPlace, config: Mapping[str, Any]) -> dict[str, int]:
    """Height and width of the sample of a component without one, as a control network: those of its neighbours.

    Empty where the component has its own, or they have none or several.
    """
    if place.pipeline is None or config.get("sample_size") is not None:
        return {}
    found = set()
    folder = place.pipeline
    components = _indexed(folder) if (folder / INDEX).is_file() else _unindexed(folder)
    for name in (one.name for one in components if not one.asked_only):
        file = folder / name / "config.json"
        size = read_json(file).get("sample_size") if file.is_file() else None
        if size is not None:
            found.add(tuple(size) if isinstance(size, list) else (size, size))
    sizes = next(iter(found)) if len(found) == 1 else ()
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        return {}
    return {HEIGHT: sizes[0], WIDTH: sizes[1]}


def sizes_of_picture(path: Path, height: int | None, width: int | None) -> dict[str, int]:
    """Height and width of the sample for those that the user names: a pipeline's are in pixels, a denoiser's its own.

    Args:
        path: the folder; one without a model_index.json is a denoiser alone.
        height: None for none, and so width.
        width: likewise.

    Raises:
        ModelError: the configuration of the pipeline's autoencoder cannot be read.
    """
    if height is None or width is None:
        return {}
    pixels = _pixels_a_position(snapshot_of(path))
    return {HEIGHT: max(1, height // pixels), WIDTH: max(1, width // pixels)}


def _pixels_a_position(folder: Path) -> int:
    """Pixels of a picture along each side of a position of the sample, by the autoencoder of its pipeline.

    Raises:
        ModelError: the autoencoder's configuration does not say them.
    """
    files = [folder / name / "config.json" for name in AUTOENCODERS if (folder / INDEX).is_file()]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return 1
    config = read_json(file)
    for key in ("spatial_compression_ratio", "scale_factor_spatial"):  # LTX-Video, Wan
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    # each level but the first halves the sides; Qwen-Image lists the halvings themselves
    for key, first in (("block_out_channels", 1), ("encoder_block_out_channels", 1), ("temperal_downsample", 0)):
        if isinstance(config.get(key), list) and config[key]:
            return int(2 ** (len(config[key]) - first))
    raise ModelError(
        f"{file} does not say how many pixels a position of the sample has, expected block_out_channels; leave "
        "`height` and `width` out"
    )


def scheduler_of(component: str, index: Mapping[str, Any]) -> str:
    """Name of the scheduler that a pipeline drives a component with.

    `prior_scheduler` is of `prior`, `super_res_scheduler` of `super_res_first` and `super_res_last`, and `scheduler`
    of what has none of its own.
    """
    ends = "_scheduler"
    owners = [name.removesuffix(ends) for name in index if name.endswith(ends)]
    mine = [name for name in owners if component == name or component.startswith(f"{name}_")]
    return f"{max(mine, key=len)}{ends}" if mine else "scheduler"
