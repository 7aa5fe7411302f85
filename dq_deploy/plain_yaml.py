"""YAML that people write: plain values alone, and no key twice, of which the last would be taken without a word."""

from __future__ import annotations

from reprlib import repr as short
from typing import Any


def plain_yaml(text: str) -> Any:
    """The value of a text in YAML; tags that make Python objects are unknown to it.

    Raises:
        ValueError: no YAML, a key that stands twice in one mapping, or nested too deeply; says in one line what and
            where.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{short(key.value)} stands twice", key.start_mark
                        )
                    seen.add(key.value)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).replace(' in "<unicode string>",', " at").split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read") from error
