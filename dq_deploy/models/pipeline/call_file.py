"""A file that says what is asked of a pipeline: anything its `__call__` takes, as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import NPZ_ERRORS
from dq_deploy.errors import FileProblemError, OptionError, words_of
from dq_deploy.models.pipeline.call import PipelineCall
from dq_deploy.models.pipeline.pictures import SUFFIXES, read_mask, read_picture
from dq_deploy.plain_yaml import plain_yaml

if TYPE_CHECKING:
    import torch

_PATHS = ("image", "mask", "control_image")
_OTHER_NAMES = {
    "prompt": "prompts",
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "mask_image": "mask",
    "class_labels": "labels",
}
"""Names of the pipelines for what a `PipelineCall` has a name of its own for."""

_OURS = {
    "return_dict": "leave it out",
    "output_type": "leave it out: the file that is written says it",
    "generator": "give a seed beside the file",
    "num_images_per_prompt": "give `count`",
    "callback": "leave it out",
    "callback_on_step_end": "leave it out",
}
"""Arguments that the commands give themselves, and what to do in their place."""

_KINDS: dict[str, tuple[type, ...]] = {
    "negative_prompt": (str,),
    "guidance": (int, float),
    "steps": (int,),
    "scheduler": (str,),
    "image": (str,),
    "mask": (str,),
    "control_image": (str,),
    "strength": (int, float),
    "height": (int,),
    "width": (int,),
    "eta": (int, float),
    "seed": (int,),
    "count": (int,),
}


def read_call(path: Path | None, **options: Any) -> PipelineCall:
    """The call of a file, with the options of a command over it.

    Keys are the attributes of `PipelineCall` or arguments of the pipeline's `__call__`; pictures are named by their
    paths, from the file's folder.

    Args:
        path: of the YAML file; None where the options say it all.
        options: attributes of `PipelineCall`; None where none is given.

    Raises:
        FileProblemError: the file is missing or no YAML mapping, or a picture is missing, damaged or of another mode.
        OptionError: a key that is given in both places, or a value of another type.
    """
    found = {} if path is None else _attributes(path)
    for name, value in options.items():
        if value is None or value == ():
            continue
        if name in found:
            raise OptionError(f"got {name} twice, as an option and in {path}; give one")
        found[name] = value
    call = PipelineCall(**found)
    for picture in (call.image, call.control_image):  # before minutes of loading
        if picture is not None:
            read_picture(picture)
    if call.mask is not None:
        read_mask(call.mask)
    return call


def says_count(path: Path) -> bool:
    """Whether the file of a call says how many images."""
    return "count" in _read(path)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = plain_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FileProblemError(f"{path} is no YAML: {error}; expected lines as `prompt: a red ball`") from error
    if not isinstance(value, dict):
        raise FileProblemError(f"{path} holds a {type(value).__name__}, expected lines as `prompt: a red ball`")
    for key in value:
        if not isinstance(key, str):
            raise FileProblemError(f"{path} has the key {short(key)}, expected words as in `prompt: a red ball`")
    return value


def _attributes(path: Path) -> dict[str, Any]:
    known = {f.name for f in fields(PipelineCall)} - {"extra", "conditions"}
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = _OTHER_NAMES.get(key, key)
        if name in found:
            raise FileProblemError(f"{path} has {key} twice, by two names; leave one out")
        if name in _OURS:
            raise FileProblemError(f"{path} has {key}, which a file of the call cannot say; {_OURS[name]}")
        if name not in known:
            extra[key] = _loaded(value, path.parent, key)
        elif name in ("prompts", "labels"):
            found[name] = _several(value, str if name == "prompts" else int, path, key)
        else:
            found[name] = _checked(name, value, path, key)
    return {**found, "extra": extra}


def _several(value: Any, kind: type, path: Path, key: str) -> tuple[Any, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
        raise FileProblemError(f"{path} has {key} {short(value)}, expected one or a list of {kind.__name__}")
    return tuple(items)


def _checked(name: str, value: Any, path: Path, key: str) -> Any:
    kinds = _KINDS[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        words = " or ".join(kind.__name__ for kind in kinds)
        raise FileProblemError(f"{path} has {key} {short(value)}, expected {words}")
    return path.parent / str(value) if name in _PATHS else value


def _tensor(path: Path, key: str) -> torch.Tensor:
    """The array of a file of numpy; real numbers become float32, as the pipelines compute."""
    import numpy as np
    import torch

    if path.suffix != ".npy":
        raise FileProblemError(
            f"{key} is {short(path.name)}, expected the path of an array as numpy's save writes it (.npy)"
        )
    try:
        values = np.load(path, allow_pickle=False)
    except NPZ_ERRORS as error:
        raise FileProblemError(f"{key}: cannot read {path}: {words_of(error)}; write it with numpy's save") from error
    if values.dtype.kind not in "fiub":
        raise FileProblemError(f"{key}: {path} holds {values.dtype}, expected real numbers")
    if not np.isfinite(values).all():
        raise FileProblemError(f"{key}: {path} holds NaN or infinity, expected finite numbers")
    return torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)


def _loaded(value: Any, folder: Path, key: str) -> Any:
    """A picture or a tensor in place of each path of one; other values as they are."""
    if isinstance(value, list):
        return [_loaded(item, folder, key) for item in value]
    if isinstance(value, str) and (Path(value).suffix == ".npy" or key.endswith(("embeds", "latents"))):
        return _tensor(folder / value, key)
    names_one = key.endswith(("image", "images", "mask"))
    listed = ("image" in key or "mask" in key) and isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES
    if isinstance(value, str) and (names_one or listed):
        return read_picture(folder / value)
    return value
