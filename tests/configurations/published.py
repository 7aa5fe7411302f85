"""Every published configuration that the tests know."""

from __future__ import annotations

from tests.configurations.configuration import Configuration
from tests.configurations.scaled import scaled
from tests.configurations.text_unets import TEXT_UNETS
from tests.configurations.transformers import OTHER_CLASSES, REFUSED, TRANSFORMERS
from tests.configurations.unets import UNETS

ACCEPTED: tuple[Configuration, ...] = (*UNETS, *TEXT_UNETS, *TRANSFORMERS, *OTHER_CLASSES)
PUBLISHED = ACCEPTED + REFUSED


def small_forms() -> dict[str, Configuration]:
    """The small forms that differ from each other, by the names of the accepted configurations that share one."""
    found: list[tuple[list[str], Configuration]] = []
    for full in ACCEPTED:
        small = scaled(full)
        same = next((names for names, other in found if other.config == small.config), None)
        if same is None:
            found.append(([full.name], small))
        else:
            same.append(full.name)
    return {"; ".join(names): small for names, small in found}
