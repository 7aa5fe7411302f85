"""The scheduler's configuration that belongs to a denoiser's folder, however the folder was named."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.load.hub_files import check_link
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import INDEX, component_of, scheduler_of

FILE = "scheduler_config.json"

NO_LIMIT = "lambda_min_clipped"
"""-Infinity here is the default of every class that has the key (DPM-Solver's); it means no limit."""


def scheduler_config_of(folder: Path) -> dict[str, Any] | None:
    """The configuration of the scheduler that drives the denoiser in a folder; None where there is none.

    A denoiser lies in its pipeline beside `scheduler/`, by the name it was given or behind the links of that name
    (`.` inside it, a link to it); the pipeline's model_index.json says whether a folder is one of its components. A
    file inside the denoiser's own folder counts before a neighbour of another name. The class is the file's, or that
    of model_index.json where the file names none, as diffusers loads it; whether diffusers has it is not asked here.

    Raises:
        ModelError: the pipeline names a scheduler that is not there, the file is no JSON object, two classes are
            named for one scheduler, or a value is not finite.
    """
    places = list(_places(folder))
    in_pipelines = [found for found in map(_of_component, places) if found is not None]
    for file, named in in_pipelines:
        if file.is_file():
            return _read(file, named)
    if (folder / FILE).is_file():
        return _read(folder / FILE, None)
    for place in places:
        file = place.parent / "scheduler" / FILE
        if file.is_file():
            index = place.parent / INDEX
            return _read(file, (index, _class_in(index, "scheduler")) if index.is_file() else None)
    for file, named in in_pipelines:
        check_link(file)
        if named is not None and named[1] is not None:
            raise ModelError(
                f"{named[0]} names {named[1][:60]}, but {file} is missing; copy it from where the pipeline came from"
            )
    return None


def _places(folder: Path) -> Iterator[Path]:
    # the name as it is given first: a linked unet/ of a pipeline belongs to that pipeline
    if folder.name not in ("", ".."):
        yield folder
    yield folder.resolve()


def _of_component(place: Path) -> tuple[Path, tuple[Path, str | None] | None] | None:
    """File of the scheduler beside a component of a pipeline, and the class that the pipeline's index names."""
    found = component_of(place)
    if found is None:
        return None
    pipeline, component = found
    index = pipeline / INDEX
    if not index.is_file():
        return pipeline / "scheduler" / FILE, None
    name = scheduler_of(component, read_json(index))
    return pipeline / name / FILE, (index, _class_in(index, name))


def _class_in(index: Path, name: str) -> str | None:
    entry = read_json(index).get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return found if isinstance(found, str) else None


def read_scheduler(path: Path, index: Path | None = None, name: str = "scheduler") -> dict[str, Any]:
    """The configuration in a file, with the class that a pipeline's model_index.json names where the file names none.

    Raises:
        ModelError: no JSON object, two classes for one scheduler, or a value that is not finite.
    """
    return _read(path, None if index is None else (index, _class_in(index, name)))


def _read(path: Path, named: tuple[Path, str | None] | None) -> dict[str, Any]:
    config = {key: value for key, value in read_json(path).items() if (key, value) != (NO_LIMIT, -math.inf)}
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ModelError(f"{path} has {key} {short(value)}, expected finite numbers")
    if named is None or named[1] is None:
        return config
    index, class_name = named
    if config.get("_class_name", class_name) != class_name:
        raise ModelError(
            f"{index} names the scheduler {short(class_name)}, {path} {short(config['_class_name'])}; give both one "
            "class"
        )
    return {**config, "_class_name": class_name}
