"""What a TensorRT-RTX plan says about itself: its kernels, their operands' types and the ONNX nodes they stand for.

A plan holds, uncompressed, the program its runtime compiles for the GPU at load time. Each such text stands behind
`NLYM`, four bytes and its length, and names tensors (`tensor={ dims={ 14 64 } name="t" type=int8 ... }`) and kernels
(`fully_connected={ name="node" input={"a" "b" ...} ... layers="[ONNX Layer: node]..." }`). The format is private: it is
read for the versions in `TESTED_VERSIONS` only, and what cannot be read is told as a problem, never guessed.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from dq_deploy.engines.tensorrt.plan.products import Convolution, Kernel, PlanText, Product, Tensor
from dq_deploy.engines.tensorrt.plan.symbols import Size, SymbolTable, product_of
from dq_deploy.errors import FileProblemError

TESTED_VERSIONS = ("1.7.1.116",)
"""TensorRT-RTX versions whose plans this reader was tried on."""

MAX_TEXT_BYTES = 256 << 20
MAX_TEXTS = 4096
MAX_LINE = 4 << 20

_FILE_MAGIC, _TEXT_MAGIC = b"vtrt\0\0\0\0", b"NLYM\xa1\xda\x1e\0"
_TEXT_START = b"header {\n"
_HEADER_BYTES = 0x28
_STATEMENT = re.compile(r"  ([a-z_0-9]+)=\{ ")
_TOKEN = re.compile(r'"[^"]*"|[{}=]|[^\s{}="]+')
_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*?)\](?=[\x1e\x1f]|$|\[ONNX Layer: )")
_UNIQUE = re.compile(r"_U\d+$")
_TENSORS = ("tensor", "sub_tensor")
_SYMBOLS = ("memset", "mul", "copy", "max")
_PRODUCTS = {"fully_connected": "gemm", "corrltn": "conv"}
_KERNELS = ("function", "runtime_fusion")

Fields = dict[str, "str | list[str]"]


def read_plan_text(path: str | Path) -> PlanText:
    """Read the kernels out of a plan; time and memory follow the text in it, not the weights.

    Args:
        path: file written by TensorRT-RTX's builder.

    Returns:
        What it says, or the problem.

    Raises:
        FileProblemError: there is no such file, or it cannot be opened.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < _HEADER_BYTES:
                return PlanText(version="", problem="the file is too short for a plan")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except OSError as error:
        raise FileProblemError(f"cannot read plan {path}: {error.strerror or error}") from error


def _read(data: mmap.mmap) -> PlanText:
    if data[:8] != _FILE_MAGIC:
        return PlanText(version="", problem="the file does not begin as a plan of TensorRT-RTX does")
    version = ".".join(str(number) for number in data[0x18:0x1C])
    if version not in TESTED_VERSIONS:
        tested = ", ".join(TESTED_VERSIONS)
        problem = f"the plan is of TensorRT-RTX {version}; its text was only studied for {tested}"
        return PlanText(version=version, problem=problem)
    (size,) = struct.unpack_from("<Q", data, 0x10)
    if size != len(data):
        problem = f"the plan says it has {size} bytes, the file has {len(data)}"
        return PlanText(version=version, problem=problem)
    try:
        return _joined(version, [_Program(text) for text in _texts(data)])
    except _UnreadableError as error:
        return PlanText(version=version, problem=str(error))


class _UnreadableError(Exception):
    """The text is not what the tested versions write."""


def _texts(data: mmap.mmap) -> Iterator[str]:
    """The programs, whole and in their order in the file."""
    at, found = 0, 0
    while (at := data.find(_TEXT_MAGIC, at)) >= 0:
        start = at + len(_TEXT_MAGIC) + 8
        at += len(_TEXT_MAGIC)
        if data[start : start + len(_TEXT_START)] != _TEXT_START:
            continue  # eight bytes of weights that happen to look alike
        (length,) = struct.unpack_from("<Q", data, start - 8)
        if length > min(MAX_TEXT_BYTES, len(data) - start):
            raise _UnreadableError(f"a program in the plan claims {length} bytes, more than there are or are read")
        found += 1
        if found > MAX_TEXTS:
            raise _UnreadableError(f"the plan holds more than {MAX_TEXTS} programs")
        yield data[start : start + length].decode("utf-8", errors="replace")
        at = start + length


def _joined(version: str, programs: Sequence[_Program]) -> PlanText:
    products: list[Product] = []
    kernels: list[Kernel] = []
    accelerators: list[str] = []
    main: _Program | None = None
    for program in programs:
        if not program.compiled:
            main = program
            accelerators += [name for name in program.accelerators if name not in accelerators]
            products += program.products(program.symbols)
            own = program.kernels()
            program.fusions = [kernel for kernel in own if kernel.compiled]
            kernels += own
        elif main is None:
            raise _UnreadableError("a fusion stands in front of the program it belongs to")
        else:  # the program of one fusion; it names sizes that only its main program defines
            products += [_in_fusion(product, main) for product in program.products(main.symbols)]
    if not accelerators:
        raise _UnreadableError("no program was found in the plan")
    return PlanText(
        version=version,
        problem="",
        accelerators=tuple(accelerators),
        products=tuple(products),
        kernels=tuple(kernels),
    )


def _in_fusion(product: Product, main: _Program) -> Product:
    """A product of a fusion's own program, under the name of the fusion that lists its nodes."""
    for kernel in main.fusions:
        if product.nodes and set(product.nodes) <= set(kernel.nodes):
            return replace(product, fusion=kernel.name, accelerators=kernel.accelerators)
    return replace(product, operands=("unknown", "unknown"), fusion="?", accelerators=tuple(main.accelerators))


class _Program:
    """One text: what it runs on, its tensors and its statements."""

    def __init__(self, text: str) -> None:
        self.symbols = SymbolTable()
        self.tensors: dict[str, Fields] = {}
        self._statements: list[tuple[str, Fields]] = []
        self.accelerators: list[str] = []
        self.fusions: list[Kernel] = []
        for line in text.split("\n"):
            self._take(line)
        if not self.accelerators:
            raise _UnreadableError("a program in the plan does not say what it is for")
        self.compiled = self.accelerators == ["*"]

    def _take(self, line: str) -> None:
        if line.startswith("  accelerators="):
            self.accelerators = _list(fields_of(line), "accelerators")
        match = _STATEMENT.match(line)
        if match is None:
            return
        if len(line) > MAX_LINE:
            raise _UnreadableError(f"a line of the plan's text has {len(line)} characters")
        word = match[1]
        if word not in (*_TENSORS, *_SYMBOLS, *_PRODUCTS, *_KERNELS):
            return
        fields = fields_of(line[match.end() :])
        if word in _TENSORS:
            self.tensors[_word(fields, "name")] = fields
        elif word in _SYMBOLS:
            self.symbols.add(word, _list(fields, "output"), _list(fields, "input"), _word(fields, "src"))
        else:
            self._statements.append((word, fields))

    def tensor(self, name: str, symbols: SymbolTable) -> Tensor:
        """Sizes and type of a tensor, `unknown` where it is not described."""
        fields = self.tensors.get(name, {})
        dims = tuple(symbols.size(item) for item in _list(fields, "dims"))
        return Tensor(dims=dims, type=_word(fields, "type") or "unknown")

    def products(self, symbols: SymbolTable) -> list[Product]:
        """Products of this program; sizes by `symbols`."""
        found = []
        for word, fields in self._statements:
            if word not in _PRODUCTS:
                continue
            tensors = [self.tensor(name, symbols) for name in _list(fields, "input")[:2]]
            out = [self.tensor(name, symbols) for name in _list(fields, "output")[:1]]
            if len(tensors) < 2 or not out:
                raise _UnreadableError(f"product {_word(fields, 'name')} lacks operands")
            listed = nodes_listed(_word(fields, "layers"))
            make = _gemm if word == "fully_connected" else _convolution
            product = make(fields, tensors[0], tensors[1], out[0])
            nodes = _own_nodes(_word(fields, "name"), listed)
            found.append(replace(product, nodes=nodes, listed=listed, accelerators=tuple(self.accelerators)))
        return found

    def kernels(self) -> list[Kernel]:
        """Kernels of this program that are not products."""
        return [
            Kernel(
                name=_word(fields, "name"),
                nodes=nodes_listed(_word(fields, "layers")),
                inputs=self._types(_list(fields, "input_args")),
                outputs=self._types(_list(fields, "output_args")),
                compiled=word == "runtime_fusion",
                accelerators=tuple(self.accelerators),
            )
            for word, fields in self._statements
            if word in _KERNELS
        ]

    def _types(self, names: Sequence[str]) -> tuple[str, ...]:
        tensors = [self.tensor(name, self.symbols) for name in names]
        return tuple(t.type for t in tensors if t.type != "int64" and any(d != Size.of(1) for d in t.dims))


def fields_of(text: str) -> Fields:
    """`name="a" dims={ 1 2 } type=int8 }` as a dict; what is in nested braces is one flat list."""
    fields: Fields = {}
    items: list[str] = []
    key, previous, depth = "", "", 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "{":
            depth += 1
            items = [] if depth == 1 else items
        elif token == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0 and key:
                fields.setdefault(key, items)
                key = ""
        elif token == "=":
            key = previous if depth == 0 else key
        elif depth:
            items.append(token.strip('"'))
        elif key:
            fields.setdefault(key, token.strip('"'))
            key = ""
        previous = token
    return fields


def nodes_listed(layers: str) -> tuple[str, ...]:
    """Node names of `[ONNX Layer: a]` joined by control characters."""
    return tuple(dict.fromkeys(_NODE.findall(layers)))


def _own_nodes(name: str, listed: tuple[str, ...]) -> tuple[str, ...]:
    """Nodes a product is named after; merged ones are joined by `+`, and `_U` and a number may make a name unique."""
    for pieces in ([name], name.split("+")):
        own = tuple(piece if piece in listed else _UNIQUE.sub("", piece) for piece in pieces)
        if set(own) <= set(listed):
            return own
    return ()


def _word(fields: Mapping[str, str | list[str]], key: str) -> str:
    value = fields.get(key, "")
    return value if isinstance(value, str) else ""


def _list(fields: Mapping[str, str | list[str]], key: str) -> list[str]:
    value = fields.get(key, [])
    return value if isinstance(value, list) else []


def _gemm(fields: Fields, a: Tensor, b: Tensor, out: Tensor) -> Product:
    """`a` is [..., M, K] or turned, `b` [..., K, N] or turned; either may stand for a batch of the other."""
    unknown = Size.unknown()
    m = n = k = batch = unknown
    if len(a.dims) >= 2 and len(b.dims) >= 2:
        m, k = a.dims[-2:] if _word(fields, "trA") == "false" else a.dims[-2:][::-1]
        n = b.dims[-1] if _word(fields, "trB") == "false" else b.dims[-2]
        batch_a, batch_b = product_of(a.dims[:-2]), product_of(b.dims[:-2])
        if batch_b == Size.of(1):
            m, batch = product_of([batch_a, m]), Size.of(1)
        elif batch_a == Size.of(1):
            n, batch = product_of([batch_b, n]), Size.of(1)
        else:
            batch = batch_a
    return Product(kind="gemm", nodes=(), listed=(), operands=(a.type, b.type), m=m, n=n, k=k, batch=batch)


def _convolution(fields: Fields, x: Tensor, w: Tensor, out: Tensor) -> Product:
    unknown = Size.unknown()
    operands = (x.type, w.type)
    sizes = [d.number for d in w.dims]
    numbers = [_numbers(fields, key) for key in ("strides", "lpadding", "rpadding", "dilation")]
    known = len(x.dims) >= 3 and len(out.dims) == len(x.dims) and None not in sizes and None not in numbers
    if not known or len(sizes) != len(x.dims):
        return Product(
            kind="conv", nodes=(), listed=(), operands=operands, m=unknown, n=unknown, k=unknown, batch=unknown
        )
    weight = [int(size or 0) for size in sizes]
    stride, before, after, dilation = (tuple(n or ()) for n in numbers)
    groups = int(_word(fields, "nbr_groups") or 0)
    geometry = Convolution(
        n=weight[0],
        c=weight[1] * groups,
        kernel=tuple(weight[2:]),
        stride=stride,
        padding=before + after,
        dilation=dilation,
        groups=groups,
        spatial=x.dims[2:],
        spatial_out=out.dims[2:],
    )
    n, k = Size.of(weight[0]), Size.of(prod(weight[1:]))
    return Product(
        kind="conv", nodes=(), listed=(), operands=operands, m=x.dims[0], n=n, k=k, batch=Size.of(1),
        convolution=geometry,
    )  # fmt: skip


def _numbers(fields: Fields, key: str) -> list[int] | None:
    items = _list(fields, key)
    return [int(item) for item in items] if items and all(item.isdecimal() for item in items) else None
