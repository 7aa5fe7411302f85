"""What a pipeline's folder says of itself, checked before any of it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import MissingDependencyError, ModelError, OptionError
from dq_deploy.models.load.component_class import diffusers_class
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import INDEX, USUAL_NAMES

LIBRARIES = ("diffusers", "transformers")
"""Libraries whose classes are loaded; a folder may name others, even a file of its own."""

_NAMES = (*USUAL_NAMES, "denoiser")


@dataclass(frozen=True, kw_only=True)
class PipelineFolder:
    """A folder with model_index.json.

    Attributes:
        path: of the folder.
        class_name: pipeline class of diffusers.
        components: (library, class) by name; those that are null are left out.
        absent: names of the components that are null: the pipeline is made without them.
    """

    path: Path
    class_name: str
    components: Mapping[str, tuple[str, str]]
    absent: Sequence[str] = ()


def the_denoiser(pipeline: str, names: Sequence[str], component: str | None) -> str:
    """Which of a pipeline's components is the denoiser: the one named, or the only UNet or transformer.

    Raises:
        OptionError: there is none, there are several, or none of that name.
    """
    found = [name for name in names if any(re.fullmatch(rf"{known}(_.*)?", name) for known in _NAMES)]
    if component is not None:
        if component not in names:
            raise OptionError(f"the {pipeline} has no {short(component)}, expected one of {', '.join(names)}")
        return component
    if len(found) == 1:
        return found[0]
    if not found:
        raise OptionError(
            f"the {pipeline} has neither a unet nor a transformer; give `component`, one of {', '.join(names)}"
        )
    raise OptionError(f"the {pipeline} has {len(found)} denoisers, {', '.join(found)}; give one as `component`")


def read_pipeline_folder(path: Path) -> PipelineFolder | None:
    """Read model_index.json; None where the folder has none.

    Raises:
        ModelError: it is damaged, names a class that diffusers does not have, or asks for code in the folder to be run.
        MissingDependencyError: it needs transformers, which is not installed.
    """
    file = path / INDEX
    if not file.is_file():
        return None
    index = read_json(file)
    class_name = _pipeline_class(file, index.get("_class_name"))
    components, absent = {}, []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list):
            continue  # settings of the pipeline itself
        if len(entry) != 2:
            raise ModelError(f"{file} has {name} {short(entry)}, expected [library, class]; copy the file again")
        if entry[0] is None or entry[1] is None:
            absent.append(name)
            continue
        _check_component(file, name, entry)
        components[name] = (str(entry[0]), str(entry[1]))
    return PipelineFolder(path=path, class_name=class_name, components=components, absent=absent)


def _pipeline_class(file: Path, name: Any) -> str:
    import diffusers

    if isinstance(name, list) or (file.parent / "pipeline.py").is_file():
        shown = name[0] if isinstance(name, list) and name else "pipeline.py"
        raise ModelError(
            f"{file} is a custom pipeline whose code {short(shown)} lies in its folder: code of a folder is never run; "
            "give a pipeline of diffusers"
        )
    found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline):
        return str(name)
    needs = getattr(found, "_backends", None)  # diffusers' stand-in for a class whose packages are not installed
    if needs:
        raise _missing(f"the pipeline {name}", needs)
    raise ModelError(
        f"{file} names the pipeline {short(name)}, which diffusers {diffusers.__version__} does not have; expected a "
        "pipeline class of it"
    )


def _missing(what: str, needs: Sequence[str]) -> MissingDependencyError:
    import importlib.util

    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    named = " and ".join(absent or needs)
    return MissingDependencyError(f"{what} needs {named}; install it with pip install 'dq-deploy[pipelines]'")


def _check_component(file: Path, name: str, entry: Sequence[Any]) -> None:
    """Refuse a component of another library: diffusers would import whatever module is named.

    Raises:
        ModelError: it is not of diffusers or transformers.
        MissingDependencyError: transformers is not installed.
    """
    import importlib.util

    library, kind = entry
    words = isinstance(library, str) and isinstance(kind, str) and kind.isidentifier()
    if not words or (library not in LIBRARIES and diffusers_class(kind, library) is None):
        raise ModelError(
            f"{file} has {name} {short(list(entry))}, expected a class of diffusers or transformers: no other code is "
            "run, and none of the folder's own"
        )
    if library == "transformers" and importlib.util.find_spec("transformers") is None:
        raise _missing(f"the component {name} of {file.parent}", ["transformers"])
