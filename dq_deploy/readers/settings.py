"""What a foreign checkpoint does not say about itself: a small YAML file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import DqError, FileProblemError, OptionError
from dq_deploy.models.pipeline import build_scheduler
from dq_deploy.plain_yaml import plain_yaml

LARGEST_FILE = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is said about a checkpoint; a source layer is named by its path in the source's network.

    Attributes:
        family: the source's network, `ddim` or `ldm`.
        network: constructor arguments of that network.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        symmetric_activations: whether activation codes are signed around zero.
        softmax_bits: of the quantizers behind the softmax, 2 to 16; None leaves those out.
        layer_bits: other bits of single layers, `{path: {"weight": b, "activation": b}}`.
        float_layers: layers that run in float whatever the file holds.
        splits: channels of the first half, where the file and the network do not tell.
        timesteps: in the order of the file's tables.
        step_edges: where the next table begins, rising; None takes the midpoints of `timesteps`.
        scheduler: diffusers configuration of the scheduler, or None.
    """

    family: str
    network: Mapping[str, Any]
    weight_bits: int
    activation_bits: int
    symmetric_activations: bool = False
    softmax_bits: int | None = None
    layer_bits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    timesteps: tuple[float, ...] = ()
    step_edges: tuple[float, ...] | None = None
    scheduler: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the file."""
        for name in ("weight_bits", "activation_bits"):
            _check_bits(name, getattr(self, name))
        if self.softmax_bits is not None:
            _check_bits("softmax_bits", self.softmax_bits, most=16)
        for layer, bits in self.layer_bits.items():
            if not isinstance(bits, Mapping) or not bits or set(bits) - {"weight", "activation"}:
                raise OptionError(
                    f"settings: layer_bits of {layer} is {short(bits)}, expected weight and activation bits"
                )
            for what, value in bits.items():
                _check_bits(f"layer_bits of {layer}, {what}", value)
        if len(set(self.timesteps)) != len(self.timesteps):
            raise OptionError("settings: timesteps holds a number twice, expected each once, in the tables' order")
        pairs = list(zip(self.timesteps, self.timesteps[1:], strict=False))
        if any(b > a for a, b in pairs) and any(b < a for a, b in pairs):
            raise OptionError("settings: timesteps rises and falls, expected the order in which a sampler runs")
        if self.scheduler is not None:
            try:
                build_scheduler(self.scheduler)
            except DqError as error:
                raise OptionError(f"settings: {error}") from error
        edges = self.step_edges
        if edges is not None and (len(edges) != len(self.timesteps) - 1 or sorted(set(edges)) != list(edges)):
            raise OptionError(
                f"settings: step_edges has {len(edges)} numbers, expected {max(len(self.timesteps) - 1, 0)} "
                "rising ones, one less than timesteps"
            )

    def bits_of(self, path: str) -> tuple[int, int]:
        """Weight and activation bits of a source layer."""
        own = self.layer_bits.get(path, {})
        return own.get("weight", self.weight_bits), own.get("activation", self.activation_bits)


def _check_bits(name: str, value: Any, *, most: int = 8) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= most:
        raise OptionError(f"settings: {name} is {short(value)}, expected a whole number from 2 to {most}")


_PLAIN = ("weight_bits", "activation_bits", "symmetric_activations", "softmax_bits")
_LISTS = ("float_layers", "timesteps", "step_edges")
_MAPS = ("layer_bits", "splits", "scheduler")
KEYS = ("architecture", *_PLAIN, *_LISTS, *_MAPS)
"""Entries of the file."""


def load_settings(path: Path) -> Settings:
    """Settings of a YAML or JSON file.

    Raises:
        FileProblemError: it cannot be read or is no YAML.
        OptionError: an entry is unknown, missing or of the wrong kind.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise FileProblemError(f"{path} has {path.stat().st_size} bytes, expected a small YAML file of settings")
        value = plain_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileProblemError(f"{path} does not exist; write what the checkpoint does not say into it") from error
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FileProblemError(f"{path} is not YAML ({error}); expected settings as `weight_bits: 4`") from error
    try:
        return settings_from(value)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def settings_from(value: Any) -> Settings:
    """Settings of a mapping as the file has it.

    Raises:
        OptionError: an entry is unknown, missing or of the wrong kind.
    """
    if not isinstance(value, dict):
        raise OptionError(f"settings are a {type(value).__name__}, expected a mapping such as `weight_bits: 4`")
    unknown = sorted(str(key) for key in value if key not in KEYS)
    if unknown:
        raise OptionError(f"settings: {unknown[0]} is unknown, expected {', '.join(KEYS)}")
    missing = [key for key in ("architecture", "weight_bits", "activation_bits") if key not in value]
    if missing:
        raise OptionError(f"settings: {missing[0]} is missing, and the checkpoint does not say it; add it")
    network = value["architecture"]
    if not isinstance(network, dict) or set(network) != {"family", "config"} or not isinstance(network["config"], dict):
        raise OptionError("settings: architecture needs `family: ddim` or `ldm`, and `config:` with its arguments")
    given: dict[str, Any] = {key: value[key] for key in _PLAIN if key in value}
    if not isinstance(given.get("symmetric_activations", False), bool):
        raise OptionError(
            f"settings: symmetric_activations is {short(value['symmetric_activations'])}, expected true, false"
        )
    given |= {key: _mapping(key, value[key]) for key in _MAPS if value.get(key) is not None}
    given |= {key: _list(key, value[key]) for key in _LISTS if value.get(key) is not None}
    return Settings(family=str(network["family"]), network=network["config"], **given)


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise OptionError(f"settings: {key} is {short(value)}, expected a mapping by name")
    if key == "splits" and not all(type(n) is int and n > 0 for n in value.values()):
        raise OptionError(f"settings: splits is {short(value)}, expected the channels of each first half")
    return value


def _list(key: str, value: Any) -> tuple[Any, ...]:
    kinds: tuple[type, ...] = (str,) if key == "float_layers" else (int, float)
    good = isinstance(value, list) and all(isinstance(one, kinds) and not isinstance(one, bool) for one in value)
    if not good or (kinds != (str,) and not all(abs(one) < 2**24 for one in value)):
        raise OptionError(
            f"settings: {key} is {short(value)}, expected a list of {'names' if kinds == (str,) else 'numbers'}"
        )
    return tuple(value) if kinds == (str,) else tuple(float(one) for one in value)
