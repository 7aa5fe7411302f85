"""Named sets of options, and options from a user's own YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.methods.options import DEFAULT_METHOD, METHODS, OPTION_NAMES, SharedOptions, options_for
from dq_deploy.plain_yaml import plain_yaml

PRESETS = ("fast", "balanced", "best")
"""How long a method works: files beside this module, `<name>.yaml`."""

BIT_PRESETS = ("w4a4", "w4a4-mixed", "w4a6-mixed", "w5a5-mixed")
"""Which bits layers get, and what training needs other at them: files beside this module."""

PICTURE_PRESETS = ("pictures",)
"""What follows a method, to bring pictures nearer to the float model's: files beside this module."""

DEFAULT_PRESET = "balanced"


def preset_path(preset: str) -> Path:
    """File of a preset: a packaged name, or a path that ends in .yaml or .yml.

    Raises:
        OptionError: neither a known name nor a YAML path.
        FileProblemError: the file is not there.
    """
    if preset in (*PRESETS, *BIT_PRESETS, *PICTURE_PRESETS):
        return Path(__file__).parent / f"{preset}.yaml"
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join((*PRESETS, *BIT_PRESETS, *PICTURE_PRESETS))
        raise OptionError(f"preset is {preset!r}, expected {known} or the path of a .yaml file")
    if not path.is_file():
        raise FileProblemError(f"preset {path} does not exist, expected a YAML file of options")
    return path


def read_preset(preset: str, method: str | None = None) -> dict[str, Any]:
    """Options of a preset by name, unchecked values of known names.

    A table under a method's name holds what that method takes instead; other methods' tables are passed over.

    Args:
        preset: as `preset_path` takes it.
        method: whose table counts; None is the preset's own `method`, or the default one.

    Raises:
        FileProblemError: not YAML, or not a table.
        OptionError: an option that does not exist.
    """
    path = preset_path(preset)
    try:
        values = plain_yaml(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FileProblemError(f"cannot read preset {path}: {reason}; expected YAML `option: value` lines") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FileProblemError(f"preset {path} holds a {type(values).__name__}, expected `option: value` lines")
    sections = {name: values.pop(name) or {} for name in METHODS if name in values}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise OptionError(f"preset {path} has {name!r}: {section!r}, expected `option: value` lines under it")
    for section in sections.values():
        for name in section:
            if name not in OPTION_NAMES or name == "method":
                raise OptionError(f"preset {path} has option {name!r}, expected one of {', '.join(OPTION_NAMES)}")
    chosen = values.get("method", DEFAULT_METHOD) if method is None else method
    if isinstance(chosen, str):
        values.update(sections.get(chosen, {}))
    for name in values:
        if name not in OPTION_NAMES:
            raise OptionError(f"preset {path} has option {name!r}, expected one of {', '.join(OPTION_NAMES)}")
    for name in ("keep", "labels"):
        if isinstance(values.get(name), str):
            values[name] = [piece.strip() for piece in values[name].split(",") if piece.strip()]
    if not isinstance(values.get("layer_bits", {}), dict):
        raise OptionError(f"preset {path} has layer_bits {values['layer_bits']!r}, expected `pattern: bits` lines")
    return values


def options_from_preset(preset: str, **overrides: Any) -> SharedOptions:
    """Options of a preset with some of them replaced; a given None replaces nothing.

    Several presets may stand with a comma between, as `fast,w4a4-mixed,pictures`: a later one replaces what it names.
    What a user's file and bits leave out is as in `DEFAULT_PRESET`, its table of the method included.

    Raises:
        OptionError: a value is out of range or of the wrong type.
        FileProblemError: the preset cannot be read.
    """
    names = [preset] if Path(preset).is_file() else [name.strip() for name in preset.split(",")]
    for kind in (PRESETS, BIT_PRESETS, PICTURE_PRESETS):
        if len(given := [name for name in names if name in kind]) > 1:
            raise OptionError(f"presets {' and '.join(given)} were given, expected one of {', '.join(kind)}")
    if not any(name in PRESETS for name in names):  # a file may leave out what a method needs other than its neighbours
        names = [DEFAULT_PRESET, *names]
    method = overrides.get("method")
    if method is None:  # the last preset that names one
        method = next((m for name in reversed(names) if (m := read_preset(name).get("method"))), None)
    values: dict[str, Any] = {}
    for name in names:
        values |= read_preset(name, method)
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return options_for(**values)
    except (TypeError, AttributeError) as error:
        raise OptionError(f"preset {preset}: {error}; see the option list of `QuantizeOptions`") from error
