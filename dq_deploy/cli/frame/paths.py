"""Path options of a command: an empty one is refused, and one whose ending is that of another format."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from typer.models import ArgumentInfo, ParameterInfo

from dq_deploy.artifacts import place_of_output
from dq_deploy.errors import OptionError

_REPORTS = (".htm", ".html", ".json")
_PICTURES = (".gif", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".webp")

_NO_ENDING_OF = {
    "json": ("json", {*_REPORTS, *_PICTURES} - {".json"}),
    "html": ("html", {*_REPORTS, *_PICTURES} - {".htm", ".html"}),
}
"""Name of an option -> the ending of its files, and endings that say another format."""

_NEW_FOLDERS = ("write_triton", "layout")
"""Options of a command that writes a folder: the one that names it, and the one by which `out` does."""

_SHOWN: Any = type("path", (Path,), {})
"""By its name the help calls a path `<path>`; there are none of it."""


def check_picture(path: Path, option: str) -> None:
    """Refuse another ending than .png, whose bytes a picture has whatever its name; a pipe or a device may have any.

    Raises:
        OptionError: another ending.
    """
    if path.suffix.lower() not in ("", ".png") and not place_of_output(path).streams:
        raise OptionError(f"{option} is {path}, expected a name that ends in .png; change the ending")


def checked_paths(parameter: inspect.Parameter, others: Collection[str] = ()) -> inspect.Parameter:
    """The parameter of a command; where it takes a path, an empty text is refused and not read as the folder `.`.

    Args:
        parameter: of the command.
        others: names of all its parameters, which tell whether `out` may be a new folder.
    """
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, *rest = get_args(parameter.annotation)
    described = next((entry for entry in rest if isinstance(entry, ParameterInfo)), None)
    if described is None or (kind is not Path and Path not in get_args(kind)):
        return parameter
    own = copy.copy(described)
    own.parser = _Reader(
        parameter.name,
        _shown_name(parameter.name, described),
        may_be_new_folder=parameter.name in _NEW_FOLDERS or (parameter.name == "out" and "layout" in others),
    )
    shown = _SHOWN if kind is Path else _SHOWN | None
    return parameter.replace(annotation=Annotated[shown, own])


class _Reader:
    """Turns the text of one option into a path."""

    def __init__(self, name: str, shown: str, *, may_be_new_folder: bool) -> None:
        self._name, self._shown, self._may_be_new_folder = name, shown, may_be_new_folder

    def __call__(self, text: str | Path) -> Path:
        if not str(text):
            raise OptionError(f"{self._shown} is empty, expected a path; give one or leave the option out")
        path = Path(text)
        is_folder = path.is_dir() or (self._may_be_new_folder and not path.exists())
        if str(text).endswith(os.sep) and not is_folder:  # a Path forgets it
            what = "a file" if path.exists() else "no folder"
            raise OptionError(f"{self._shown} is {text}, but {path} is {what}; leave the slash out")
        ending, wrong = _NO_ENDING_OF.get(self._name, ("", set[str]()))
        if path.suffix.lower() in wrong and not place_of_output(path).streams:
            raise OptionError(f"{self._shown} is {path}, expected a name that ends in .{ending}; change the ending")
        return path


def _shown_name(name: str, described: ParameterInfo) -> str:
    """As the help shows it: a flag, or an argument in capitals."""
    if isinstance(described, ArgumentInfo):
        return name.upper()
    # inside Annotated the first flag stands where a default otherwise does
    flags = (described.default, *(described.param_decls or ()))
    given = [flag for flag in flags if isinstance(flag, str) and flag.startswith("--")]
    return given[0] if given else f"--{name.replace('_', '-')}"
