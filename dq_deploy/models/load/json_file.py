"""The JSON files of a model folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.load.hub_files import check_link


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises:
        ModelError: the file is missing, unreadable or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        check_link(path)
        raise ModelError(f"{path} is missing; expected a diffusers folder with it") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}); expected a diffusers configuration") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def check_finite(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration with a number that is none.

    Raises:
        ModelError: names the entry.
    """
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{path} has {key} {value}, expected a finite number")
