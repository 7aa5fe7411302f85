"""Loads the CPU library and runs calls of its ops on numpy arrays, with no compiler and no torch."""

from __future__ import annotations

import ctypes as c
import functools
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dq_kernels.cpu import structs
from dq_kernels.cpu.build import library_path
from dq_kernels.cpu.structs import ISAS, OPS, Call

MISSING = (
    "the CPU kernels are not built: {why}; install a C++17 compiler (g++ or clang++) and install this package again, "
    "or run python -m dq_kernels.cpu.build. The library engines (onnxruntime, openvino) work without"
)

MOST_THREADS = 256
"""Of one context; DQ_MAX_THREADS."""


class KernelsMissingError(ImportError):
    """There is no CPU library that this Python code can use; the message says why and what to do."""


class KernelInputError(ValueError):
    """An array has another dtype, shape or alignment than a kernel takes; the message names both."""


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """The shared library, with its functions' types set.

    Raises:
        KernelsMissingError: it was not built, does not load here, or is another version than this code.
    """
    path = library_path()
    if not path.is_file():
        raise KernelsMissingError(MISSING.format(why=f"{path.name} is not in {path.parent}"))
    try:
        loaded = c.CDLL(str(path))
    except OSError as error:
        raise KernelsMissingError(MISSING.format(why=str(error))) from error
    i32, i64, pointer = c.c_int32, c.c_int64, c.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "dq_known_isas": (i32, []),
        "dq_refusal_of_isa": (i32, [i32]),
        "dq_has_bfloat16": (i32, []),
        "dq_has_bfloat16_tiles": (i32, []),
        "dq_attention_form": (c.c_char_p, [i32, i32]),
        "dq_attention_codes_fit": (i32, [i64, i64]),
        "dq_struct_bytes": (i64, [i32]),
        "dq_open": (pointer, [i32, i32]),
        "dq_close": (None, [pointer]),
        "dq_run": (i64, [pointer, pointer, i64]),
        "dq_run_timed": (i64, [pointer, pointer, i64, pointer]),
        "dq_packed_bytes": (i64, [i32, i64, i64, i64, pointer, pointer, i32]),
        "dq_pack_weights": (None, [i32, i64, i64, i64, pointer, pointer, i32, pointer]),
        "dq_packed_form": (i64, [pointer, pointer, i64]),
        "dq_form_of_product": (None, [pointer, pointer]),
        "dq_form_bytes": (i64, []),
    }
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        sizes = {name: loaded.dq_struct_bytes(number) for number, name in enumerate(OPS)}
    except AttributeError as error:
        raise KernelsMissingError(MISSING.format(why=f"{path.name} is of another version ({error})")) from error
    wrong = [name for name, size in sizes.items() if size != c.sizeof(OPS[name])]
    wrong += [] if loaded.dq_form_bytes() == c.sizeof(structs.ProductForm) else ["product_form"]
    if wrong:
        raise KernelsMissingError(MISSING.format(why=f"{path.name} is of another version ({wrong[0]} differs)"))
    return loaded


def known_isas() -> tuple[str, ...]:
    """Instruction sets this CPU runs, the slowest first; names of `ISAS`."""
    bits = library().dq_known_isas()
    return tuple(name for number, name in enumerate(ISAS) if bits >> number & 1)


def refusal_of(isa: str) -> str:
    """Why an instruction set cannot be opened here, "" where it can."""
    if isa not in ISAS:
        return "which there are no kernels for"
    return structs.REFUSALS[library().dq_refusal_of_isa(ISAS.index(isa))]


def aligned_empty(shape: tuple[int, ...], dtype: Any, alignment: int = 64) -> NDArray[Any]:
    """An array whose first byte lies on a multiple of `alignment`."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    array: NDArray[Any] = raw[start : start + size].view(kind).reshape(shape)
    return array


def attention_form(isa: str, precision: str) -> str:
    """How attention's products are multiplied on an instruction set, in words; `precision` as of `PRECISIONS`."""
    text: bytes = library().dq_attention_form(ISAS.index(isa), structs.PRECISIONS.index(precision))
    return text.decode("ascii")


class Context:
    """Threads and an instruction set; a context manager.

    Runs of several Python threads follow one another. A forked child starts threads of its own at its first run.

    Attributes:
        threads: how many run each op.
        isa: a name of `ISAS`.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        """Start the threads.

        Args:
            threads: None takes one for each CPU this process may use.
            isa: None takes the best this CPU has.

        Raises:
            KernelsMissingError: there is no library.
            KernelInputError: an instruction set this CPU lacks, or a wrong number of threads.
        """
        known = known_isas()
        self.threads = min(len(os.sched_getaffinity(0)), MOST_THREADS) if threads is None else threads
        self.isa = known[-1] if isa is None else isa
        refusal = refusal_of(self.isa)
        if refusal:
            raise KernelInputError(f"instruction set is {self.isa!r}, {refusal}, expected one of {', '.join(known)}")
        self._handle: int = library().dq_open(self.threads, ISAS.index(self.isa))
        if not self._handle:
            raise KernelInputError(
                f"threads is {self.threads}, expected 1 to {MOST_THREADS} that the system lets start"
            )
        self._end = weakref.finalize(self, library().dq_close, self._handle)

    def _open(self) -> int:
        if not self._end.alive:
            raise KernelInputError("the context is closed, expected one whose `with` block has not ended")
        return self._handle

    def run(self, calls: c.Array[Any]) -> None:
        """Run a list made by `call_list`."""
        bad = library().dq_run(self._open(), c.addressof(calls), len(calls))
        if bad:
            raise KernelInputError(f"call {bad - 1} names op {calls[bad - 1].op}, expected 0 to {len(OPS) - 1}")

    def run_timed(self, calls: c.Array[Any]) -> NDArray[np.int64]:
        """Run a list; nanoseconds of each call."""
        spent = np.zeros(len(calls), np.int64)
        bad = library().dq_run_timed(self._open(), c.addressof(calls), len(calls), spent.ctypes.data)
        if bad:
            raise KernelInputError(f"call {bad - 1} names op {calls[bad - 1].op}, expected 0 to {len(OPS) - 1}")
        return spent

    def call(self, op: str, args: c.Structure) -> None:
        """Run one op."""
        self.run(call_list([(op, args)]))

    def pack(
        self, weights: NDArray[np.int8], code_span: int, weight_zero: NDArray[np.int32] | None = None
    ) -> NDArray[np.uint8]:
        """Weights in this context's access order.

        Args:
            weights: int8 [out_channels, positions, channels] with positions = kh * kw, or 1.
            code_span: q_max - q_min of the activations, 1..255.
            weight_zero: int32 [out_channels], taken from each weight where w_q does not fit int8; None for zeros.
        """
        return pack_weights(self.isa, weights, code_span, weight_zero)

    def attention_form(self, precision: str) -> str:
        """How attention's products are multiplied here, in words; `precision` is one of `structs.PRECISIONS`."""
        return attention_form(self.isa, precision)

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._end()

    def __enter__(self) -> Self:
        """The context itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self.close()


def pack_weights(
    isa: str, weights: NDArray[np.int8], code_span: int, weight_zero: NDArray[np.int32] | None = None
) -> NDArray[np.uint8]:
    """As `Context.pack`, for any instruction set the library has kernels for, whatever this CPU runs."""
    if weights.dtype != np.int8 or weights.ndim != 3 or not weights.flags.c_contiguous:
        wanted = "contiguous int8 [out_channels, positions, channels]"
        raise KernelInputError(f"weights are {weights.dtype} {weights.shape}, expected {wanted}")
    if not 1 <= code_span <= 255:
        raise KernelInputError(f"code span is {code_span}, expected 1 to 255")
    if weight_zero is not None and (weight_zero.dtype != np.int32 or weight_zero.shape != weights.shape[:1]):
        raise KernelInputError(
            f"weight zero points are {weight_zero.dtype} {weight_zero.shape}, expected int32 {weights.shape[:1]}"
        )
    zeros = None if weight_zero is None else np.ascontiguousarray(weight_zero)
    address = None if zeros is None else zeros.ctypes.data
    shape = (ISAS.index(isa), *weights.shape, weights.ctypes.data, address, code_span)
    packed = aligned_empty((library().dq_packed_bytes(*shape),), np.uint8)
    library().dq_pack_weights(*shape, packed.ctypes.data)
    return packed


@dataclass(frozen=True, kw_only=True)
class ProductForm:
    """How an integer product is done, as the kernels themselves say.

    Attributes:
        isa: instruction set, a name of `ISAS`.
        memory_bits: of a weight in memory, 4 or 8.
        pairs: products of two codes that are summed in int16 before they are widened; 0 where none are.
    """

    isa: str
    memory_bits: int
    pairs: int


def product_form(packed: NDArray[np.uint8]) -> ProductForm:
    """How the product of packed weights is done."""
    form = structs.ProductForm()
    library().dq_form_of_product(packed.ctypes.data, c.addressof(form))
    return ProductForm(isa=ISAS[form.isa], memory_bits=form.memory_bits, pairs=form.pairs)


def packed_form(packed: NDArray[np.uint8]) -> str:
    """How packed weights are held and multiplied, in words."""
    text = c.create_string_buffer(128)
    library().dq_packed_form(packed.ctypes.data, c.addressof(text), len(text))
    return text.value.decode("ascii")


def call_list(calls: Sequence[tuple[str, c.Structure]]) -> c.Array[Any]:
    """Calls of ops in order; keeps the argument structs alive, not the arrays they point to."""
    numbers = {name: number for number, name in enumerate(OPS)}
    result: c.Array[Any] = (Call * len(calls))(*(Call(numbers[op], 0, c.addressof(args)) for op, args in calls))
    result.__dict__["keep"] = [args for _, args in calls]
    return result
