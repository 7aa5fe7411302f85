"""What follows from images' heights and widths: computed in the graph, once for all layers of one image and window.

Where the size does not vary, engines compute it when they open the file: stored, an index of patches would be larger
than the weights of most layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from dq_deploy.graph.writing.builder import CONTRIB_DOMAIN, Builder
from dq_deploy.numerics.geometry import Padding, Pair, Window

INT64, BOOL, FLOAT = ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.FLOAT


def sizes_of_image(value: ir.Value) -> tuple[int | str, int | str] | None:
    """Height and width of a tensor [B, C, height, width]; None where its shape does not tell them apart."""
    shape = value.shape
    if shape is None or len(shape) != 4:
        return None
    height, width = (size if isinstance(size, int) else size.value for size in list(shape)[2:])
    return None if height is None or width is None else (height, width)


def padded_text(size: int | str, more: int) -> int | str:
    """A size and some more pixels."""
    return size + more if isinstance(size, int) else size if more == 0 else f"({size}) + {more}"


class ImageSizes:
    """Nodes that compute sizes and what follows from them, by image size and window; each is written once a graph."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ir.Value] = {}
        self._begun = 0

    def size(self, b: Builder, image: ir.Value) -> ir.Value:
        """Height and width, int64 [2], of an image [B, C, height, width]."""

        def make() -> ir.Value:
            fixed = fixed_size(image)
            if fixed is not None:
                return _vector(b, fixed)
            return b.op("Shape", [image], "image_size", attributes={"start": 2, "end": 4}, dtype=INT64)

        return self._once(b, ("size", self._key(image)), make)

    def size_out(self, b: Builder, image: ir.Value, window: Window) -> ir.Value:
        """Height and width, int64 [2], of what a window makes of an image."""
        top, left, bottom, right = window.padding
        (rows, columns), stride = window.span, window.stride
        more = (top + bottom - rows + stride[0], left + right - columns + stride[1])

        def make() -> ir.Value:
            size = self.size(b, image)
            if any(more):
                size = b.op("Add", [size, _vector(b, more)], "size_padded", dtype=INT64)
            return size if stride == (1, 1) else b.op("Div", [size, _vector(b, stride)], "size_out", dtype=INT64)

        return self._once(b, ("size out", self._key(image), more, stride), make)

    def positions(self, b: Builder, image: ir.Value, window: Window, axis: int) -> tuple[ir.Value, ir.Value | None]:
        """Rows or columns of the image that a window reads, and which of them are inside.

        Args:
            b: where nodes are written.
            image: [B, C, height, width].
            window: what moves over it.
            axis: 0 for rows, 1 for columns.

        Returns:
            int64 [size out, kernel], and bool of the same shape, None where all are inside.
        """
        kernel, stride = window.kernel[axis], window.stride[axis]
        dilation, before, after = window.dilation[axis], window.padding[axis], window.padding[axis + 2]
        key = (self._key(image), axis, kernel, stride, dilation, before, after)

        def place() -> ir.Value:
            ends = _pick(b, self.size_out(b, image, window), axis, "count")
            zero, one = b.constant(np.int64(0), "zero"), b.constant(np.int64(1), "one")
            at = b.op("Range", [zero, ends, one], "outputs", dtype=INT64)
            if stride != 1:
                at = b.op("Mul", [at, b.constant(np.int64(stride), "stride")], "starts", dtype=INT64)
            column = b.op("Unsqueeze", [at, _vector(b, (1,))], "column", dtype=INT64)
            taps = np.arange(kernel, dtype=np.int64) * dilation - before
            return b.op("Add", [column, b.constant(taps, "taps")], "positions", dtype=INT64)

        def inside() -> ir.Value:
            limit = _pick(b, self.size(b, image), axis, "limit")
            below = b.op("Less", [at, limit], "below", dtype=BOOL)
            above = b.op("GreaterOrEqual", [at, b.constant(np.int64(0), "zero")], "above", dtype=BOOL)
            return b.op("And", [above, below], "inside", dtype=BOOL)

        at = self._once(b, ("positions", *key), place)
        return at, self._once(b, ("inside", *key), inside) if before or after else None

    def patch_index(self, b: Builder, image: ir.Value, window: Window) -> ir.Value:
        """Pixel of each kernel position of each output pixel: int64 [H_out * W_out * kh * kw].

        Pixels are numbered row by row; H * W stands for a pixel of the padding.
        """

        def make() -> ir.Value:
            size = self.size(b, image)
            pixels = b.op("ReduceProd", [size], "pixels_count", attributes={"keepdims": 0}, dtype=INT64)
            grid = (
                self._taps(b, image, window, pixels)
                if any(d != 1 for d in window.dilation)
                else self._windows(b, size, window, pixels)
            )
            return b.op("Reshape", [grid, _vector(b, (-1,))], "patches", dtype=INT64)

        return self._once(b, ("patches", self._key(image), window), make)

    def _windows(self, b: Builder, size: ir.Value, window: Window, pixels: ir.Value) -> ir.Value:
        """Numbers of pixels [H_out, W_out, kh, kw]: the numbered image, with padding, seen through the window."""
        zero, one = b.constant(np.int64(0), "zero"), b.constant(np.int64(1), "one")
        numbers = b.op("Range", [zero, pixels, one], "numbers", dtype=INT64)
        grid = b.op("Reshape", [numbers, size], "numbered", dtype=INT64)
        if any(window.padding):
            grid = b.op("Pad", [grid, _vector(b, window.padding), pixels], "bordered", dtype=INT64)
        for axis, role in ((0, "rows"), (1, "windows")):
            moved: dict[str, int | float | str | Sequence[int]] = {
                "dim": axis,
                "size": window.kernel[axis],
                "step": window.stride[axis],
            }
            grid = b.op("UnfoldTensor", [grid], role, domain=CONTRIB_DOMAIN, attributes=moved, dtype=INT64)
        return grid

    def _taps(self, b: Builder, image: ir.Value, window: Window, pixels: ir.Value) -> ir.Value:
        """The same for a window with gaps."""
        width = _pick(b, self.size(b, image), 1, "width")
        (rows, rows_inside), (columns, columns_inside) = (self.positions(b, image, window, a) for a in (0, 1))
        starts = b.op("Mul", [rows, width], "row_starts", dtype=INT64)
        if rows_inside is not None:
            starts = b.op("Where", [rows_inside, starts, pixels], "rows_or_padding", dtype=INT64)
        if columns_inside is not None:
            columns = b.op("Where", [columns_inside, columns, pixels], "columns_or_padding", dtype=INT64)
        grid = b.op("Unsqueeze", [starts, _vector(b, (1, 3))], "rows_of_grid", dtype=INT64)
        line = b.op("Unsqueeze", [columns, _vector(b, (1,))], "columns_of_grid", dtype=INT64)
        index = b.op("Add", [grid, line], "grid", dtype=INT64)
        if rows_inside is not None or columns_inside is not None:
            index = b.op("Min", [index, pixels], "at_most_padding", dtype=INT64)  # a sum with one is beyond it
        return index

    def image_shape(self, b: Builder, channels: int, image: ir.Value, window: Window) -> ir.Value:
        """Shape int64 [4] with which Reshape makes an image of the window's outputs; 0 stands for the batch."""

        def make() -> ir.Value:
            head = _vector(b, (0, channels))
            return b.op("Concat", [head, self.size_out(b, image, window)], "shape_out", attributes={"axis": 0})

        return self._once(b, ("shape", channels, self._key(image), window), make)

    def _key(self, image: ir.Value) -> object:
        """Equal for images of equal sizes."""
        return sizes_of_image(image) or image.name

    def _once(self, b: Builder, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._made:
            layer, b.prefix = b.prefix, f"dq/sizes/{self._begun}"
            self._begun += 1
            self._made[key] = make()
            b.prefix = layer
        return self._made[key]


def fixed_size(image: ir.Value) -> Pair | None:
    """Height and width of an image whose size does not vary, else None."""
    found = sizes_of_image(image)
    return (found[0], found[1]) if found and isinstance(found[0], int) and isinstance(found[1], int) else None


def _vector(b: Builder, numbers: Sequence[int]) -> ir.Value:
    return b.constant(np.array(numbers, np.int64), "numbers")


def _pick(b: Builder, vector: ir.Value, index: int, role: str) -> ir.Value:
    """One number of a vector, without axes."""
    return b.op("Gather", [vector, b.constant(np.int64(index), "index")], role, attributes={"axis": 0}, dtype=INT64)


def weights_inside(
    b: Builder, sizes: ImageSizes, image: ir.Value, window: Window, taps: ir.Value, role: str
) -> ir.Value:
    """Sums of a window's weights that fall on pixels, not on padding: float32 [1, C_out, H_out, W_out].

    Two products of small matrices, exact where the sums are integers below 2^24.

    Args:
        b: where nodes are written.
        sizes: of the graph.
        image: what the window moves over.
        window: with padding.
        taps: float32 [1, C_out, kh, kw], weights summed over input channels.
        role: begins the names of the nodes.
    """
    found = []
    for axis, name in ((0, "rows"), (1, "columns")):
        at, inside = sizes.positions(b, image, window, axis)
        if inside is None:
            inside = b.op("GreaterOrEqual", [at, b.constant(np.int64(0), "zero")], f"{role}_{name}", dtype=BOOL)
        found.append(b.op("Cast", [inside], f"{role}_{name}_inside", attributes={"to": int(FLOAT)}, dtype=FLOAT))
    rows, columns = found
    across = b.op("Transpose", [columns], f"{role}_columns_across", attributes={"perm": [1, 0]}, dtype=FLOAT)
    halves = b.op("MatMul", [rows, taps], f"{role}_row_sums", dtype=FLOAT)
    return b.op("MatMul", [halves, across], f"{role}_sums", dtype=FLOAT)


def padded_shape(value: ir.Value, padding: Padding) -> ir.Shape | None:
    """The shape of an image [B, C, height, width] with padding around it."""
    shape = value.shape
    if shape is None:
        return None
    top, left, bottom, right = padding
    more = (0, 0, top + bottom, left + right)
    sizes = (size if isinstance(size, int) else size.value for size in shape)
    return ir.Shape([None if s is None else padded_text(s, n) for s, n in zip(sizes, more, strict=True)])
