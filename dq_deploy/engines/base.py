"""The one interface every engine has: named numpy arrays in, named numpy arrays out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from dq_deploy.engines.capabilities import DeviceRuns, LayerRuns
from dq_deploy.engines.turns import Turns
from dq_deploy.errors import DqError, InputError, NonFiniteError, OptionError
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.models.sizes import BATCH, following
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import Array

UNNAMED = "?"
"""Stands for a free size that the engine's file gives no name; nothing is held against it."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, numpy dtype and shape of an engine's input or output; a str is a free dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class Runner(ABC):
    """Runs one engine: named numpy arrays in, named numpy arrays out. Use it as a context manager.

    Inputs are checked before they reach the engine: names, dtypes, shapes, one value of each named size, finite
    numbers, values within the limits of an input. If the engine takes only one step bucket in a batch, that is checked
    too. Outputs are checked for NaN and infinity, and belong to the caller. Threads may share a runner; `close` waits
    until no thread runs it.

    Attributes:
        engine: name of the engine, such as `onnxruntime`.
        side_by_side: whether several threads can run the engine at once; otherwise they take turns.
        forkable: whether a forked child may go on using it.
        manifest: what the exporter said of the engine, or None.
        inputs: specifications of the inputs, in the engine's order.
        outputs: specifications of the outputs, in the engine's order.
        finite_check: whether NaN and infinity are looked for.
        finite_check_ms: time spent looking, over all runs.
        runs: number of runs.
    """

    engine: str
    side_by_side = False
    forkable = True

    def __init__(self, manifest: EngineManifest | None, *, finite_check: bool) -> None:
        self.manifest = manifest
        self.finite_check = finite_check
        self.finite_check_ms = 0.0
        self.runs = 0
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._turns = Turns(self.engine, side_by_side=self.side_by_side)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes that may differ from run to run, the batch among them, in the order of the inputs."""
        named = (size for spec in self.inputs for size in spec.shape if isinstance(size, str) and size != UNNAMED)
        return tuple(dict.fromkeys(named))

    def sizes_with(self, asked: Mapping[str, int]) -> dict[str, int]:
        """Sizes of a run by name: those of the calls the model was quantized with, and those asked for.

        Raises:
            OptionError: a name that is no size of this engine, or a number that it does not take.
            InputError: a height or width that does not go evenly into a part of it that has a name.
        """
        usual = {} if self.manifest is None else dict(self.manifest.sizes or {})
        multiples = {} if self.manifest is None else self.manifest.multiples or {}
        free = [size for size in self.sizes if size != BATCH]
        for name, value in asked.items():
            if name not in free:
                known = ", ".join(f"{size} (usually {usual[size]})" if size in usual else size for size in free)
                raise OptionError(f"size {name} does not vary in this engine; what varies is {known or 'the batch'}")
            step = multiples.get(name, 1)
            if value < 1 or value % step:
                raise OptionError(f"size {name} got {value}, expected a multiple of {step}, from {step}")
        return following(usual, asked)

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the library that runs the engine."""

    @property
    def runtime_words(self) -> str:
        """Name and version, for a report."""
        return f"{self.engine} {self.version}"

    @property
    def layer_runs(self) -> LayerRuns | None:
        """What runs layer by layer; None where the engine is one piece."""
        return None

    @property
    def device_runs(self) -> DeviceRuns | None:
        """What takes device memory; None where the engine runs on the CPU."""
        return None

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked inputs; the arrays it gives are nobody else's."""

    @abstractmethod
    def _free(self) -> None:
        """Free the engine, which no thread is using."""

    def close(self) -> None:
        """Free the engine when no other thread runs it any more; a second call does nothing."""
        if self._turns.close() and (self.forkable or not self._turns.forked):
            self._free()

    def using(self) -> Turns:
        """A context manager around every use of the engine.

        Raises:
            InputError: this process is a fork of the one that opened the engine, which cannot follow; when entered,
                that the engine is closed.
        """
        if self._turns.forked and not self.forkable:
            raise InputError(
                f"the engine {self.engine} was opened before this process was forked, and a GPU cannot follow; open "
                "it in the process that runs it"
            )
        return self._turns

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once.

        Args:
            feeds: one array for each input, with the dtype its specification names.

        Returns:
            Output arrays by name.

        Raises:
            InputError: a name, dtype, shape or value is not what the engine takes, or the engine is closed.
            NonFiniteError: an output holds NaN or infinity.
            DqError: the engine fails.
        """
        with self.using():
            given = self.checked_feeds(feeds)
            results = self._run_or_say_why(given)
        with self._turns.moment:
            self.runs += 1
        if self.finite_check:
            start = time.perf_counter()
            for name, value in results.items():
                if is_float(value.dtype) and not np.isfinite(value).all():
                    raise NonFiniteError(self._non_finite(name, value, given))
            self._count_check(start)
        return results

    def run_checked(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run inputs that a runner of the same specifications has checked, and leave the outputs unchecked.

        Raises:
            InputError: the engine is closed.
            DqError: the engine fails.
        """
        with self.using():
            results = self._run_or_say_why(feeds)
        with self._turns.moment:
            self.runs += 1
        return results

    def preparation(self, feeds: Mapping[str, Array]) -> Callable[[], object] | None:
        """What checked inputs of sizes not seen lately need before they run, and other threads' runs need not wait for.

        Returns:
            A function that does it, which the first run would do else; None where there is nothing.
        """
        return None

    def _run_or_say_why(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run; whatever a library raises becomes one line."""
        try:
            return self._run(feeds)
        except DqError:
            raise
        except MemoryError as error:
            batch = next((len(value) for value in feeds.values() if value.ndim), 1)
            raise InputError(
                f"{self.engine} has not enough memory for a batch of {batch}, expected a smaller one; run it in parts"
            ) from error
        except Exception as error:
            raise DqError(
                f"{self.engine} failed in a run: {reason_of(error)}; verify the engine with dq-verify"
            ) from error

    def _non_finite(self, name: str, value: Array, feeds: Mapping[str, Array]) -> str:
        bad = np.argwhere(~np.isfinite(value))
        try:
            with self.using():
                where = self._first_layer(feeds)
        except Exception:  # the output is the fault; where it comes from is an extra
            where = ""
        return (
            f"output {name} holds {len(bad)} values that are NaN or infinite, first at "
            f"{tuple(int(i) for i in bad[0])}, from finite inputs{where}; verify the engine with dq-verify"
        )

    def _first_layer(self, feeds: Mapping[str, Array]) -> str:
        """Where values that are not finite begin: text that begins with a semicolon, or nothing where unknown."""
        return ""

    def checked_feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs in the engine's order, in this machine's byte order and dense.

        Raises:
            InputError: a name, dtype, shape or value is not what the engine takes.
        """
        if not isinstance(feeds, Mapping):
            raise InputError(f"inputs are a {type(feeds).__name__}, expected a mapping from names to numpy arrays")
        expected = [spec.name for spec in self.inputs]
        if set(feeds) != set(expected):
            given = sorted(str(name) if len(str(name)) <= 60 else f"{str(name)[:57]}..." for name in feeds)
            more = f" and {len(given) - 8} more" if len(given) > 8 else ""
            raise InputError(f"inputs are {', '.join(given[:8])}{more}; expected {', '.join(expected)}")
        found = {spec.name: _dense(feeds[spec.name], spec) for spec in self.inputs}
        self._check(found)
        return found

    def _check(self, feeds: Mapping[str, Array]) -> None:
        """Refuse what the engine does not take, beyond names and dtypes."""
        found: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            value = feeds[spec.name]
            fits = value.ndim == len(spec.shape) and all(
                isinstance(want, str) or want == have for want, have in zip(spec.shape, value.shape, strict=True)
            )
            if not fits or 0 in value.shape:
                raise InputError(f"input {spec.name} has shape {value.shape}, expected {_shape_text(spec.shape)}")
            for size, have in zip(spec.shape, value.shape, strict=True):
                if isinstance(size, int) or size == UNNAMED:
                    continue
                want, of = found.setdefault(size, (have, spec.name))
                if want != have:
                    raise InputError(_disagreement(spec.name, size, have, want, of))
        multiples = (None if self.manifest is None else self.manifest.multiples) or {}
        for size, step in multiples.items():
            have, of = found.get(size, (0, ""))
            if have % step:
                raise InputError(f"input {of} has a {size} of {have}, expected a multiple of {step} in this engine")
        self._check_values(feeds)

    def _check_values(self, feeds: Mapping[str, Array]) -> None:
        if self.finite_check:
            start = time.perf_counter()
            for name, value in feeds.items():
                if is_float(value.dtype) and not np.isfinite(value).all():
                    where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
                    raise InputError(f"input {name} holds {value[where]} at {where}, expected finite numbers")
            self._count_check(start)
        if self.manifest is None:
            return
        self._check_limits(feeds)
        if self.manifest.single_step_batch and "timestep" in feeds:
            edges = np.asarray(self.manifest.step_edges, np.float32)
            buckets = np.unique(step_bucket(feeds["timestep"], edges))
            if len(buckets) > 1:
                raise InputError(
                    f"timestep falls into step buckets {buckets.tolist()}; this engine (mode fast) takes one bucket a "
                    'batch: run them apart or export with `mode="exact"`'
                )

    def _check_limits(self, feeds: Mapping[str, Array]) -> None:
        """Refuse whole numbers out of an input's limits: no row of a table stands for them."""
        assert self.manifest is not None
        limits = {entry.name: entry.limits for entry in self.manifest.inputs if entry.limits is not None}
        classes = self.manifest.model_config.get("num_class_embeds")
        if classes and not limits:  # an earlier version wrote the manifest
            limits = {"class_labels": (0, classes - 1)}
        for name, (low, high) in limits.items():
            value = feeds.get(name)
            if value is not None and value.dtype.kind in "iu" and (value.min() < low or value.max() > high):
                raise InputError(f"{name} span {value.min()}..{value.max()}, expected {low:g}..{high:g}")

    def _count_check(self, start: float) -> None:
        with self._turns.moment:
            self.finite_check_ms += (time.perf_counter() - start) * 1e3

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        """Refuse copies and pickles: both would hold one engine, which the first to close would free under the other.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"a runner of the engine {self.engine} cannot be copied or pickled, expected one runner a process; threads "
            "may share it, another process opens the engine's file itself"
        )

    def __enter__(self) -> Self:
        """The runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the engine."""
        self.close()


def reason_of(error: BaseException, default: str = "no reason given") -> str:
    """What an error of a library says, in one line of at most 200 characters, with its type where that tells more."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else default
    if isinstance(error, (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-75:]}"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values can be NaN or infinite: also of bfloat16, which numpy holds for an opaque type."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _dense(value: Array, spec: TensorSpec) -> Array:
    """An array as engines read it: of the wanted dtype in this machine's byte order, contiguous.

    Raises:
        InputError: no numpy array, one with a mask, or of another dtype.
    """
    if isinstance(value, np.ma.MaskedArray):  # what lies under the mask would run
        raise InputError(f"input {spec.name} is a masked array, expected a plain one of {spec.dtype}; fill it first")
    if not isinstance(value, np.ndarray) or spec.dtype not in (value.dtype, value.dtype.newbyteorder("=")):
        got = value.dtype if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise InputError(f"input {spec.name} is {got}, expected a numpy array of {spec.dtype}")
    return np.ascontiguousarray(value, spec.dtype).reshape(value.shape)  # which alone would give a number an axis


def _disagreement(name: str, size: str, have: int, want: int, other: str) -> str:
    if size == BATCH:
        return f"input {name} has a batch of {have}, expected {want} as the others"
    return f"input {name} has the size {size} {have}, expected {want} as input {other} has it"


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(d) for d in shape) + "]"
