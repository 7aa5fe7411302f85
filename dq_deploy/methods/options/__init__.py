"""What a method is asked to do: what all share, and a dataclass a method."""

from __future__ import annotations

from dq_deploy.methods.options.by_method import (
    BLOCK_SIZES,
    DEFAULT_METHOD,
    METHODS,
    OPTION_NAMES,
    PARTS,
    AdaRoundOptions,
    DilateQuantOptions,
    DmqOptions,
    EdaDmOptions,
    GptqOptions,
    MinmaxOptions,
    QuestOptions,
    TrainingOptions,
    check_names,
    json_of_options,
    options_for,
)
from dq_deploy.methods.options.shared import FLOAT_ACTIVATIONS, SharedOptions, bits_pair

__all__ = [
    "BLOCK_SIZES",
    "DEFAULT_METHOD",
    "FLOAT_ACTIVATIONS",
    "METHODS",
    "OPTION_NAMES",
    "PARTS",
    "AdaRoundOptions",
    "DilateQuantOptions",
    "DmqOptions",
    "EdaDmOptions",
    "GptqOptions",
    "MinmaxOptions",
    "QuestOptions",
    "SharedOptions",
    "TrainingOptions",
    "bits_pair",
    "check_names",
    "json_of_options",
    "options_for",
]
