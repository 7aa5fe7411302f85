"""The text of a config.pbtxt, in the text format of protocol buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
    "text": "TYPE_STRING",
}
"""Triton's name of an element type."""


@dataclass(frozen=True, kw_only=True)
class TensorText:
    """An input or output of a model.

    Attributes:
        name: of the tensor.
        dtype: a key of `TYPES`.
        dims: sizes without the batch; -1 is a free one.
        reshape: sizes that the backend sees; None where they are `dims`.
        optional: whether a request may leave it out.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False

    def lines(self, *, of_input: bool) -> list[str]:
        """As lines of a block."""
        found = [
            f"name: {quoted(self.name)}",
            f"data_type: {TYPES[self.dtype]}",
            f"dims: [ {', '.join(map(str, self.dims))} ]",
        ]
        if self.reshape is not None:
            found.append(f"reshape {{ shape: [ {', '.join(map(str, self.reshape))} ] }}")
        if of_input and self.optional:
            found.append("optional: true")
        return found


def quoted(text: str) -> str:
    """A string of the text format: printable ASCII as it is, every other byte in octal."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in text.encode("utf-8"))
    return f'"{"".join(plain)}"'


def block(name: str, lines: Sequence[str]) -> list[str]:
    """Lines inside braces, two spaces further in."""
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]


def tensors(name: str, entries: Sequence[TensorText]) -> list[str]:
    """Blocks of inputs or of outputs.

    Args:
        name: `input` or `output`.
        entries: in order.
    """
    return [line for entry in entries for line in block(name, entry.lines(of_input=name == "input"))]


def parameters(values: Mapping[str, str]) -> list[str]:
    """Blocks of parameters, in the order of their names."""
    return [
        line
        for key in sorted(values)
        for line in block("parameters", [f"key: {quoted(key)}", f"value {{ string_value: {quoted(values[key])} }}"])
    ]


def remark(text: str) -> str:
    """A comment of one line."""
    return f"# {' '.join(text.split())}"
