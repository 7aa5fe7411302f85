"""`--size NAME=N`: sizes of the axes that vary, as the commands take them."""

from __future__ import annotations

from collections.abc import Sequence

from dq_deploy.errors import OptionError


def sizes_from_options(given: Sequence[str] | None) -> dict[str, int]:
    """Sizes by name.

    Args:
        given: each as `height=16`.

    Raises:
        OptionError: another form, a number below 1, or a name twice.
    """
    found: dict[str, int] = {}
    for entry in given or ():
        name, _, number = entry.partition("=")
        if not name.isidentifier() or not (number.isascii() and number.isdecimal()) or int(number) < 1:
            raise OptionError(f"--size got {entry!r}, expected NAME=N with a whole number from 1, such as height=16")
        if name in found:
            raise OptionError(f"--size names {name} twice, expected once")
        found[name] = int(number)
    return found
