"""Which product of a plan is which layer's: by the ONNX node it is named after and its shape, else by shape alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dq_deploy.engines.tensorrt.plan.products import Kernel, Product
from dq_deploy.engines.tensorrt.plan.symbols import Size
from dq_deploy.manifest.values import ManifestLayer, ProductShape
from dq_deploy.verify.layers.attestation import product_names

INTEGER_OPERANDS = ("int8", "int4")
PADDED_TO = (2, 4)
"""The builder rounds K and N of products up to a multiple of 2, channels of convolutions to one of 4, with zeros."""

_RANK = {"integer": 0, "float": 1, "unknown": 2}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one layer became: `integer`, `float` or `unknown`, with its operands and the reason where not integer."""

    executed: str
    operands: tuple[str, ...]
    why: str

    @property
    def rank(self) -> int:
        """0 for integer; the more, the less is known to be integer."""
        return _RANK[self.executed]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One product that a layer needs.

    Attributes:
        layer: module path.
        node: ONNX node of the product, empty where the manifest names none.
        shape: `product` of the manifest, or None.
        integer: whether integers were asked for.
    """

    layer: str
    node: str
    shape: ProductShape | None
    integer: bool


def wanted_products(entry: ManifestLayer) -> list[Wanted]:
    """Products of one layer of the manifest: one a part, or one for a layer without parts."""
    layer, integer = entry.name, entry.integer
    if not entry.parts:
        node = entry.node or f"dq/{layer}/product"
        return [Wanted(layer=layer, node=node, shape=entry.product, integer=integer)]
    return [
        Wanted(layer=layer, node=name, shape=part.product, integer=integer)
        for part in entry.parts
        for name in product_names(part)
    ]


def is_integer(product: Product) -> bool:
    """Whether both operands are int8 or int4."""
    return all(kind in INTEGER_OPERANDS for kind in product.operands)


def is_float(product: Product) -> bool:
    """Whether both operands are known and one of them is no integer."""
    return "unknown" not in product.operands and not is_integer(product)


def operands_text(product: Product) -> str:
    """As `int8 x int8`."""
    return " x ".join(product.operands)


@dataclass
class Matching:
    """Layers against the products one GPU architecture runs.

    Attributes:
        wanted: all products all layers need.
        products: what the plan runs on this architecture.
        kernels: its other kernels.
        batch: the batch where it is fixed, else None.
        copies: how often a product may stand in the plan: the number of its profiles.
    """

    wanted: Sequence[Wanted]
    products: Sequence[Product]
    kernels: Sequence[Kernel]
    batch: int | None
    copies: int = 1
    _named: dict[str, list[Product]] = field(init=False)
    _verdicts: dict[int, Verdict] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._named = defaultdict(list)
        for product in self.products:
            for node in product.nodes:
                self._named[node].append(product)
        self._own = {want.node: want for want in self.wanted if want.node}

    def verdicts(self) -> list[Verdict]:
        """One for each of `wanted`, in their order."""
        for index, want in enumerate(self.wanted):
            if want.node and want.node in self._named:
                self._verdicts[index] = self._by_name(want)
        self._by_shape([i for i in range(len(self.wanted)) if i not in self._verdicts])
        for index, want in enumerate(self.wanted):
            if index not in self._verdicts:
                self._verdicts[index] = self._absent(want)
        return [self._verdicts[index] for index in range(len(self.wanted))]

    def _by_name(self, want: Wanted) -> Verdict:
        found = self._named[want.node]
        operands = tuple(dict.fromkeys(operands_text(product) for product in found))
        if len(found) > self.copies:
            return Verdict(executed="unknown", operands=operands, why=f"{len(found)} products are named {want.node}")
        for product in found:
            if is_float(product):
                why = f"its product takes {operands_text(product)}"
                return Verdict(executed="float", operands=operands, why=why)
            if not is_integer(product):
                return Verdict(executed="unknown", operands=operands, why="the plan does not tell its operands' types")
            if want.shape is None:
                return Verdict(executed="unknown", operands=operands, why="the manifest does not give its shape")
            if problem := self._misfit(want, product):
                return Verdict(executed="unknown", operands=operands, why=problem)
        return Verdict(executed="integer", operands=operands, why="")

    def _misfit(self, want: Wanted, product: Product) -> str:
        """Why a product named after a layer is not shaped like it, or an empty string."""
        assert want.shape is not None
        columns = 0
        for other in (self._own[node] for node in product.nodes if node in self._own):
            if other.shape is None or other.shape.kind != want.shape.kind:
                return f"its product is merged with that of {other.layer}, which has another shape"
            columns += other.shape.n or 0
        if fits(want.shape, product, columns=columns, batch=self.batch):
            return ""
        return f"the product of its name is {shape_text(product)}, expected {_wanted_text(want.shape, columns)}"

    def _by_shape(self, open_ones: list[int]) -> None:
        """Match what has no name: products without a node, layers without a product.

        All layers of a shape are settled together: if as many products are there and all are integer, or the integer
        ones are as many as were asked for, each layer is what was asked for; else none of them is known.
        """
        nameless = [p for p in self.products if not p.nodes and not p.listed]
        groups: dict[str, list[int]] = defaultdict(list)
        for index in open_ones:
            shape = self.wanted[index].shape
            if shape is not None:
                groups[repr(shape)].append(index)
        for indices in groups.values():
            shape = self.wanted[indices[0]].shape
            assert shape is not None
            found = [p for p in nameless if fits(shape, p, columns=shape.n or 0, batch=self.batch)]
            if found:
                self._verdicts |= dict(zip(indices, self._shared_shape(indices, found), strict=True))

    def _shared_shape(self, indices: list[int], found: list[Product]) -> list[Verdict]:
        integers, floats = sum(map(is_integer, found)), sum(map(is_float, found))
        asked = sum(self.wanted[index].integer for index in indices)
        operands = tuple(dict.fromkeys(operands_text(product) for product in found))
        if len(found) >= len(indices) and integers == len(found):
            return [Verdict(executed="integer", operands=operands, why="")] * len(indices)
        if floats == len(found) >= len(indices):
            why = f"all {len(found)} products of its shape take {', '.join(operands)}"
            return [Verdict(executed="float", operands=operands, why=why)] * len(indices)
        if len(found) == len(indices) == integers + floats and integers == asked:
            why = "one of the float products of its shape"
            return [
                Verdict(executed="integer", operands=("int8 x int8",), why="")
                if self.wanted[index].integer
                else Verdict(executed="float", operands=operands, why=why)
                for index in indices
            ]
        why = (
            f"{len(found)} products of its shape are in the plan, {integers} of them integer, for {len(indices)} "
            f"layers of which {asked} should be; names do not tell them apart"
        )
        return [Verdict(executed="unknown", operands=operands, why=why)] * len(indices)

    def _absent(self, want: Wanted) -> Verdict:
        """A layer that no product is named after or shaped like."""
        inside = [k for k in self.kernels if want.node and want.node in k.nodes]
        folded = [p for p in self.products if want.node and want.node in p.listed]
        integer_products = any(not is_float(p) for p in self.products)
        unclaimed = any(not is_float(p) and not set(p.nodes) & set(self._own) for p in self.products)
        integer_kernels = any(set(INTEGER_OPERANDS) & set(k.inputs) for k in self.kernels)
        if not integer_products and not integer_kernels:
            return Verdict(executed="float", operands=(), why="nothing in this plan multiplies integers")
        if not want.integer and not unclaimed and not inside:
            return Verdict(executed="float", operands=(), why="every integer product of the plan is another layer's")
        if inside or folded:
            name = inside[0].name if inside else (folded[0].nodes or ("a product without a name",))[0]
            why = f"its product is inside {name}, whose arithmetic the plan does not tell"
            return Verdict(executed="unknown", operands=(), why=why)
        return Verdict(executed="unknown", operands=(), why="no product of the plan has its name or its shape")


def fits(shape: ProductShape, product: Product, *, columns: int, batch: int | None) -> bool:
    """Whether a product has the shape a layer needs.

    Args:
        shape: `product` of the manifest: of one sample.
        product: of the plan.
        columns: N, of all layers that share the product.
        batch: the batch where it is fixed, else None.
    """
    if shape.kind != product.kind or product.batch != Size.of(1):
        return False
    if shape.kind == "conv":
        return _conv_fits(shape, product, columns, batch)
    if not _padded(product.k, shape.k):
        return False
    rows = shape.m
    upright = _rows_fit(product.m, rows, batch) and _padded(product.n, columns)
    return upright or (_rows_fit(product.n, rows, batch) and _padded(product.m, columns))


def _rows_fit(size: Size, rows: int | None, batch: int | None) -> bool:
    """Rows of a sample times the batch; with further dynamic sizes, or unknown ones, the rows tell nothing."""
    if size.factor is None:
        return False
    if rows is None or len(size.symbols) > 1:
        return bool(size.symbols) or rows is None
    if size.symbols:
        return size.factor == rows
    return batch is not None and size.factor == rows * batch


def _padded(size: Size, wanted: int | None) -> bool:
    number = size.number
    return (
        number is not None
        and wanted is not None
        and number in {wanted, *(-(-wanted // step) * step for step in PADDED_TO)}
    )


def _conv_fits(shape: ProductShape, product: Product, columns: int, batch: int | None) -> bool:
    found = product.convolution
    if found is None or found.groups != 1:
        return False
    same = (
        (shape.kernel, found.kernel),
        (shape.stride, found.stride),
        (shape.padding, found.padding),
        (shape.dilation, found.dilation),
    )
    if any(wanted != told for wanted, told in same):
        return False
    known = ((shape.spatial, found.spatial), (shape.spatial_out, found.spatial_out))
    sizes = [pair for wanted, told in known if wanted is not None for pair in zip(wanted, told, strict=True)]
    if any(told.number is not None and told.number != wanted for wanted, told in sizes):
        return False
    channels = _padded(Size.of(found.c), shape.c) and _padded(Size.of(found.n), columns)
    return channels and _rows_fit(product.m, 1, batch)


def shape_text(product: Product) -> str:
    """Of a product, as `64 x dynamic by 72 by 8`."""
    if product.convolution is not None:
        c = product.convolution
        return f"a convolution of {c.c} to {c.n} channels, kernel {'x'.join(map(str, c.kernel))}"
    times = "" if product.batch == Size.of(1) else f"{product.batch} times "
    return f"{times}{product.m} by {product.k} by {product.n}"


def _wanted_text(shape: ProductShape, columns: int) -> str:
    if shape.kind == "conv":
        return f"a convolution of {shape.c} to {columns} channels, kernel {'x'.join(map(str, shape.kernel or ()))}"
    return f"{shape.m} rows a sample by {shape.k} by {columns}"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that is least known to be integer; operands of all."""
    items = list(verdicts)
    least = max(items, key=lambda verdict: verdict.rank)
    operands = tuple(dict.fromkeys(text for verdict in items for text in verdict.operands))
    return Verdict(executed=least.executed, operands=operands, why=least.why)
