"""What quantization costs: every integer layer's output against the float model's, by layer and step.

The error of the engine (against the simulation) is another thing, and zero where the engine is exact.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import InputError
from dq_deploy.models import call_denoiser, call_of_record, lazy_weights, quantizable_layers
from dq_deploy.numerics.arrays import F32, F64
from dq_deploy.record import Record
from dq_deploy.verify.cost.folds import Folds, folds_of
from dq_deploy.verify.inputs import Batch
from dq_deploy.verify.output.difference import DECIBEL_LIMIT, simulation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class WorstLayer:
    """A layer at the step where quantization costs it most.

    Attributes:
        layer: module path.
        bits: as `W4A8`.
        step: step bucket.
        timestep: its calibrated timestep.
        sqnr_db: signal to accumulated noise there.
        local_sqnr_db: signal to the noise of the layer alone, there.
    """

    layer: str
    bits: str
    step: int
    timestep: float
    sqnr_db: float
    local_sqnr_db: float


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizationError:
    """Mean squares of float outputs and of what quantization adds to them, by layer and step bucket.

    A layer's signal and noise are in the float model's scale, also where a fold divided the layer's output. An entry is
    NaN where no input met the layer at that step.

    Attributes:
        layers: module paths in execution order, weight-only layers included.
        bits: of each, as `W4A8`; `W4A16` where activations stay float.
        timesteps: [T] calibrated timesteps.
        samples: [T] inputs at each step.
        signal: [layers, T] mean square of the float layer's output.
        noise: [layers, T] mean square of simulated minus float, both models run from the same inputs: all that layers
            in front left is in it.
        local_noise: [layers, T] the same with the simulated layer fed the float model's input: this layer alone.
        output_signal: [T] mean square of the float denoiser's output.
        output_noise: [T] of simulated minus float.
        inputs: what was fed, in words.
        source: the float model.
        seconds: time taken.
    """

    layers: tuple[str, ...]
    bits: tuple[str, ...]
    timesteps: F32
    samples: NDArray[np.int64]
    signal: F64
    noise: F64
    local_noise: F64
    output_signal: F64
    output_noise: F64
    inputs: str
    source: str
    seconds: float

    @property
    def sqnr_db(self) -> F64:
        """[layers, T] signal to accumulated noise."""
        return ratio_db(self.signal, self.noise)

    @property
    def local_sqnr_db(self) -> F64:
        """[layers, T] signal to the noise of the layer alone."""
        return ratio_db(self.signal, self.local_noise)

    @property
    def output_sqnr_db(self) -> F64:
        """[T] of the denoiser's output."""
        return ratio_db(self.output_signal, self.output_noise)

    def worst(self, count: int = 10) -> list[WorstLayer]:
        """Layers with the least accumulated SQNR at any step, least first."""
        sqnr, local = self.sqnr_db, self.local_sqnr_db
        known = [i for i in range(len(self.layers)) if np.isfinite(sqnr[i]).any()]
        steps = {i: int(np.nanargmin(sqnr[i])) for i in known}
        ranked = sorted(known, key=lambda i: sqnr[i, steps[i]])[:count]
        return [
            WorstLayer(
                layer=self.layers[i],
                bits=self.bits[i],
                step=steps[i],
                timestep=float(self.timesteps[steps[i]]),
                sqnr_db=float(sqnr[i, steps[i]]),
                local_sqnr_db=float(local[i, steps[i]]),
            )
            for i in ranked
        ]

    def rows(self) -> list[tuple[str, str]]:
        """What to read at a glance: the worst layer, and the output."""
        rows = [
            (
                "quantization",
                f"worst layer {found.layer} ({found.bits}): {found.sqnr_db:.1f} dB SQNR against float at step "
                f"{found.step} (timestep {found.timestep:g}), {found.local_sqnr_db:.1f} dB by itself; median "
                f"of layers and steps {np.nanmedian(self.sqnr_db):.1f} dB, {np.nanmedian(self.local_sqnr_db):.1f} dB "
                "by themselves",
            )
            for found in self.worst(1)
        ]
        output = self.output_sqnr_db
        if np.isfinite(output).any():
            least = int(np.nanargmin(output))
            rows.append(
                (
                    "output, float",
                    f"{output[least]:.1f} to {np.nanmax(output):.1f} dB SQNR against the float model, worst at step "
                    f"{least} (timestep {self.timesteps[least]:g})",
                )
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """JSON values: the matrices as lists of layers, the worst ten layers; NaN where nothing was measured."""
        matrices = {
            name: getattr(self, name).tolist()
            for name in (
                "timesteps", "samples", "signal", "noise", "local_noise", "output_signal", "output_noise",
                "sqnr_db", "local_sqnr_db", "output_sqnr_db",
            )
        }  # fmt: skip
        return {
            "layers": list(self.layers),
            "bits": list(self.bits),
            **matrices,
            "worst": [asdict(layer) for layer in self.worst()],
            "inputs": self.inputs,
            "source": self.source,
            "seconds": self.seconds,
        }


def ratio_db(signal: F64, noise: F64) -> F64:
    """10 log10(signal / noise), at most DECIBEL_LIMIT and at least minus that; NaN where there is no signal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(signal > 0, 10 * np.log10(signal / noise), np.nan)
    return np.where(np.isnan(ratio), np.nan, np.clip(ratio, -DECIBEL_LIMIT, DECIBEL_LIMIT))


def bits_of(record: Record, name: str) -> str:
    """Bits of a layer in the usual short form."""
    if name in record.weight_only:
        return f"W{record.weight_only[name].weight_bits}A16"
    return f"W{record.layers[name].weight_bits}A{record.layers[name].activation_bits}"


def check_same_shapes(record: Record, module: torch.nn.Module) -> None:
    """Refuse a float denoiser whose layers are not those of the record.

    Raises:
        InputError: naming the first layer that is missing or shaped otherwise.
    """
    modules = dict(module.named_modules())
    for key, mine in lazy_weights(record).items():
        name = key.removesuffix(".weight")
        got = getattr(modules.get(name), "weight", None)
        if got is None or tuple(got.shape) != tuple(mine.shape):
            there = "no such layer" if got is None else f"{tuple(got.shape)} there"
            raise InputError(
                f"float model: layer {name} has weights {tuple(mine.shape)} in the record and {there}; "
                "give the model it was quantized from"
            )


class _Sums:
    """Sums of squares by layer and bucket; of a batch nothing else stays."""

    def __init__(self, layers: int, steps: int) -> None:
        self.values, self.signal, self.noise, self.local = (np.zeros((layers, steps)) for _ in range(4))

    def add(self, row: int, buckets: NDArray[np.int64], want: Any, got: Any, alone: Any | None = None) -> None:
        """One layer's float output, accumulated output, and local output for a batch; torch tensors [B, ...]."""
        np.add.at(self.values[row], buckets, want[0].numel())
        np.add.at(self.signal[row], buckets, _squares(want))
        np.add.at(self.noise[row], buckets, _squares(got - want))
        if alone is not None:
            np.add.at(self.local[row], buckets, _squares(alone - want))

    def means(self, name: str) -> F64:
        """Mean squares, NaN where there are no values."""
        with np.errstate(invalid="ignore"):
            found: F64 = getattr(self, name) / self.values
        return found


def _squares(x: torch.Tensor) -> F64:
    """[B] sum of squares of each sample."""
    import torch

    sums: F64 = x.flatten(1).square().sum(1, dtype=torch.float64).numpy()
    return sums


@contextmanager
def _hooks(module: torch.nn.Module, names: Sequence[str], make: Any) -> Iterator[None]:
    handles = [module.get_submodule(name).register_forward_hook(make(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Comparison:
    """Both models on one batch after another."""

    def __init__(self, record: Record, module: torch.nn.Module, names: Sequence[str], *, requantized: bool) -> None:
        self.module, self.names = module, tuple(names)
        self.constants = call_of_record(record).constants
        self.simulated: Any = simulation(record, requantized=requantized)
        self.folds: Folds = folds_of(record, module)
        self.sums = _Sums(len(names), record.steps)
        self.output = _Sums(1, record.steps)
        self.row = {name: i for i, name in enumerate(names)}
        self.kept: dict[str, list[torch.Tensor]] = {}

    def run(self, batch: Batch) -> None:
        import torch

        tensors = {name: torch.from_numpy(np.array(value)) for name, value in batch.feeds.items()}
        with torch.inference_mode():
            # the simulation first: its forward sets the steps that single layers then run at
            with _hooks(self.simulated.denoiser, self.names, self._keep):
                got = call_denoiser(self.simulated, tensors)
            with _hooks(self.module, self.names, partial(self._compare, batch.buckets)):
                want = call_denoiser(self.module, tensors, self.constants)
        self.output.add(0, batch.buckets, want, got)

    def _keep(self, name: str) -> Any:
        def hook(_module: torch.nn.Module, _args: tuple[Any, ...], y: torch.Tensor) -> None:
            self.kept.setdefault(name, []).append(self._unfolded(name, y))

        return hook

    def _compare(self, buckets: NDArray[np.int64], name: str) -> Any:
        layer = self.simulated.denoiser.get_submodule(name)

        def hook(_module: torch.nn.Module, args: tuple[Any, ...], want: torch.Tensor) -> None:
            x = args[0]
            if name in self.folds.inputs:
                x = x / _channels(self.folds.inputs[name], x)
            alone = self._unfolded(name, layer(x))
            self.sums.add(self.row[name], buckets, want, self.kept[name].pop(0), alone)

        return hook

    def _unfolded(self, name: str, y: torch.Tensor) -> torch.Tensor:
        factor = self.folds.outputs.get(name)
        return y if factor is None else y * _channels(factor, y)


def _channels(factor: F64, x: torch.Tensor) -> torch.Tensor:
    """Factors along the channel axis: the second of a picture, else the last."""
    import torch

    values = torch.from_numpy(factor.astype(np.float32))
    return values.reshape(-1, 1, 1) if x.ndim == 4 else values


def quantization_error(
    record: Record,
    float_module: torch.nn.Module,
    inputs: Sequence[Batch],
    *,
    requantized: bool = False,
    words: str = "given",
    source: str = "given",
) -> QuantizationError:
    """Run the simulation and the float model on the same inputs and compare layer by layer.

    Args:
        record: the quantized denoiser.
        float_module: what it was made from; hooks are added and removed again.
        inputs: batches; steps may be mixed.
        requantized: with the declared requantization behind each convolution, as engines of mode fast have it.
        words: what the inputs are.
        source: name of the float model.

    Raises:
        InputError: the float model has other layers.
        GuaranteeError: this machine's float32 products of integers are not exact.
    """
    start = time.perf_counter()
    check_same_shapes(record, float_module)
    every = {**record.layers, **record.weight_only}
    sites = quantizable_layers(float_module, call_of_record(record))
    names = [site.name for site in sites if site.name in every]
    compared = _Comparison(record, float_module, names, requantized=requantized)
    samples = np.zeros(record.steps, np.int64)
    for batch in inputs:
        compared.run(batch)
        np.add.at(samples, batch.buckets, 1)
    return QuantizationError(
        layers=tuple(names),
        bits=tuple(bits_of(record, name) for name in names),
        timesteps=record.timesteps,
        samples=samples,
        signal=compared.sums.means("signal"),
        noise=compared.sums.means("noise"),
        local_noise=compared.sums.means("local"),
        output_signal=compared.output.means("signal")[0],
        output_noise=compared.output.means("noise")[0],
        inputs=words,
        source=source,
        seconds=time.perf_counter() - start,
    )
