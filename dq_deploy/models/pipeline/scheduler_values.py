"""In which values two schedulers differ: those that the weights were trained with, and those that one may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import DqError, OptionError
from dq_deploy.models.pipeline.schedulers import (
    TRAINED,
    build_scheduler,
    formulation_of,
    same_noise_levels,
)

_NOISE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "snr_shift_scale")
"""What noise levels are computed from; they may be written in more than one way."""

_SAMPLED = ("sigma_min", "sigma_max")
"""Where sampling begins and ends in classes that compute noise levels otherwise; in all others what was trained."""

_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """A value of a scheduler's configuration that another one has otherwise.

    Attributes:
        key: of the configuration.
        found: here.
        wanted: there, as what was quantized was calibrated with.
    """

    key: str
    found: Any
    wanted: Any


@dataclass(frozen=True)
class Differences:
    """In what a scheduler differs from the one that a record was calibrated with.

    Attributes:
        trained: values that the weights were trained with: with others the pictures are wrong.
        free: values that say how is sampled. A class that steps the same model is none of them: it may be named at any
            time, and commands say which one takes the steps.
    """

    trained: tuple[Difference, ...] = ()
    free: tuple[Difference, ...] = ()


def differences(calibrated: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Differences:
    """Compare two configurations, the other as the calibrated one's class would take it; left out values are defaults.

    Args:
        calibrated: of the scheduler that a record was calibrated with; None where it is not known.
        other: of the scheduler that is to take the steps; None where there is none.
    """
    if calibrated is None or other is None:
        return Differences()
    kind = calibrated.get("_class_name")
    try:
        wanted, own = build_scheduler(calibrated), build_scheduler(other)
    except DqError:  # not one of diffusers, or damaged: what opens it says so; here what is written counts
        return _compared(dict(calibrated), dict(other), set(calibrated) & set(other), ())
    try:
        found = build_scheduler(other, str(kind))
    except OptionError:  # the two classes do not step the same model
        mine, theirs = (f"{type(one).__name__} ({formulation_of(type(one))})" for one in (own, wanted))
        return Differences(trained=(Difference("_class_name", mine, theirs),))
    same = _NOISE if same_noise_levels(found, wanted) else ()
    said = set(own.config) & set(found.config) & set(wanted.config)
    return _compared(dict(wanted.config), dict(found.config), said, same)


def _compared(wanted: dict[str, Any], found: dict[str, Any], keys: set[str], without: Sequence[str]) -> Differences:
    trained: list[Difference] = []
    free: list[Difference] = []
    chosen = _SAMPLED if "beta_start" in wanted or str(wanted.get("_class_name")).startswith("EDM") else ()
    for key in sorted(keys):
        if key.startswith("_") or key in without or _plain(wanted[key]) == _plain(found[key]):
            continue
        difference = Difference(key, found[key], wanted[key])
        (trained if key in TRAINED and key not in chosen else free).append(difference)
    return Differences(tuple(trained), tuple(free))


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def check_trained_values(found: Differences, place: str, advice: str) -> None:
    """Refuse a scheduler that takes the denoiser's input or output for something else: weights are trained for one.

    Args:
        found: in what it differs.
        place: where it is from, in words.
        advice: what to do.

    Raises:
        OptionError: it does; names the values on both sides.
    """
    if found.trained:
        has, expected = in_words(found.trained)
        raise OptionError(f"{place} has {has}, expected {expected} as the record was calibrated with; {advice}")


def in_words(found: Sequence[Difference]) -> tuple[str, str]:
    """What a scheduler has, with names, and what the calibrated one has; the class alone says what it is."""
    shown = found[:_NAMED]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    has = ", ".join(f"{_name(one.key)} {_value(one.key, one.found)}" for one in shown)
    return has + more, ", ".join(_value(one.key, one.wanted) for one in shown) + more


def _name(key: str) -> str:
    return "the class" if key == "_class_name" else key


def _value(key: str, value: Any) -> str:
    return str(value) if key == "_class_name" else short(value)
