"""A published denoiser's configuration, as the tests see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JsonObject = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One published configuration, at full size.

    Attributes:
        name: of the model, with the publisher where there are several of that name.
        config: what its config.json says, the keys that diffusers' defaults leave alone left out.
        parameters: how many weights it has at full size; None where diffusers cannot build it, or it is a small form.
        sizes: of its inputs, where the configuration does not say them.
        refusal: a part of the line that refuses it; None where it is accepted.
    """

    name: str
    config: Mapping[str, Any]
    parameters: int | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def class_name(self) -> str:
        """Of diffusers."""
        return str(self.config["_class_name"])
