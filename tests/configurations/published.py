"""Every published configuration that the tests know."""

from __future__ import annotations

from tests.configurations.configuration import Configuration
from tests.configurations.scaled import scaled
from tests.configurations.text_unets import CONTROLNETS, TEXT_UNETS
from tests.configurations.transformers import OTHER_CLASSES, REFUSED, TRANSFORMERS
from tests.configurations.unets import UNETS
from tests.configurations.video_and_sound import SOUND, VIDEO

ACCEPTED: tuple[Configuration, ...] = (
    *UNETS,
    *TEXT_UNETS,
    *CONTROLNETS,
    *TRANSFORMERS,
    *OTHER_CLASSES,
    *VIDEO,
    *SOUND,
)
PUBLISHED = ACCEPTED + REFUSED


def small_forms() -> dict[str, Configuration]:
    """The small forms of the accepted configurations, by the names of those that share one.

    Forms that differ in how many channels they are given alone share the one with the most.
    """
    found: list[tuple[list[str], Configuration]] = []
    for full in ACCEPTED:
        small = scaled(full)
        index = next((i for i, (_, other) in enumerate(found) if _same(small, other)), None)
        if index is None:
            found.append(([full.name], small))
            continue
        names, other = found[index]
        widest = max(small, other, key=lambda form: form.config.get("in_channels", 0))
        found[index] = ([*names, full.name], widest)
    return {"; ".join(names): small for names, small in found}


def _same(one: Configuration, other: Configuration) -> bool:
    left, right = ({k: v for k, v in form.config.items() if k != "in_channels"} for form in (one, other))
    if one.config.get("addition_embed_type") == "image_hint":  # the hint is among the channels
        return one.config == other.config
    return left == right
