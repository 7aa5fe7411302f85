"""What a verification found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from dq_deploy.verify.steps import LeftOut

if TYPE_CHECKING:
    from dq_deploy.verify.cost.quantization_error import QuantizationError
    from dq_deploy.verify.layers.mixed_bits import MixedBits
    from dq_deploy.verify.layers.tally import Difference
    from dq_deploy.verify.output.difference import StepOutput

STATUSES = ("exact", "differs", "unsafe", "unproven", "float")
"""Of a layer: proven equal; compared and different; exact here but not on every CPU; not compared; not integer."""


class Fault(Enum):
    """What a failure is a failure of."""

    FILE = "the file is not what its record makes"
    RUN = "what runs is not exact, or was not compared"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One reason why an engine is not proven exact.

    Attributes:
        of: the file, or what runs.
        text: what is wrong, for a person.
    """

    of: Fault
    text: str


def failures_of(fault: Fault, texts: Iterable[str]) -> tuple[Failure, ...]:
    """Failures of one kind."""
    return tuple(Failure(of=fault, text=text) for text in texts)


def failures_of_file(differences: Iterable[str]) -> tuple[Failure, ...]:
    """How differences between an engine and what its record makes stand among the failures."""
    return failures_of(Fault.FILE, (f"not what its record makes: {text}" for text in differences))


@dataclass(frozen=True, kw_only=True)
class MacCounts:
    """Multiply-accumulates of one sample.

    Attributes:
        of_all: every convolution, linear layer and attention product.
        of_quantizable: of convolutions and linear layers.
        attention: of attention's products.
        integer: of layers whose kernels take two integer operands.
    """

    of_all: int
    of_quantizable: int
    attention: int
    integer: int


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A quantizable layer that does not run in integers.

    Attributes:
        name: module path.
        macs: multiply-accumulates of one sample.
        reason: why.
    """

    name: str
    macs: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class StepCell:
    """One layer at one step bucket, read inside the running engine.

    Attributes:
        bucket: step bucket.
        timestep: its calibrated timestep.
        samples: inputs compared.
        codes_compared: number of codes.
        code_differences: how many differ.
        max_code_difference: largest difference of a code.
        accumulators_compared: number of accumulators; 0 where the form does not show them.
        accumulator_differences: how many are not bit-equal.
        max_accumulator_difference: largest difference of an accumulator.
        max_output_difference: of the layer's float output, as a share of its largest magnitude.
        output_codes_compared: 8-bit output codes (mode fast) compared with the declared requantization.
        output_code_differences: how many differ.
        max_output_code_difference: largest difference of one.
    """

    bucket: int
    timestep: float
    samples: int
    codes_compared: int
    code_differences: int
    max_code_difference: int
    accumulators_compared: int
    accumulator_differences: int
    max_accumulator_difference: float
    max_output_difference: float
    output_codes_compared: int
    output_code_differences: int
    max_output_code_difference: int


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer of the record.

    Attributes:
        name: module path.
        kind: `linear` or `conv2d`.
        weight_bits: bits of its weight codes.
        activation_bits: bits of its activation codes.
        form: form that the exporter wrote, in words.
        requested: kernel in the shipped file.
        executed: kernel in the engine's optimized graph, one a part.
        operands: operand types of each part's kernel, activations then weights.
        integer: whether every part's kernel takes two integer operands.
        macs: multiply-accumulates of one sample.
        status: one of `STATUSES`.
        reason: why the status is not `exact`.
        codes_compared: number of codes compared in the running engine.
        accumulators_compared: number of accumulators compared in the running engine.
        max_code_difference: largest difference of a code, extreme inputs included; None where nothing was compared.
        max_accumulator_difference: largest difference of an accumulator; None where nothing was compared.
        accumulator_resolution: float32 spacing at the largest accumulator: 1 where every integer is told apart.
        largest_accumulator: largest magnitude seen.
        codes_probed: number of codes compared for extreme inputs at every step.
        accumulators_probed: number of accumulators compared for extreme inputs at every step.
        first_difference: where the first wrong value is, or None.
        steps: what was compared in each step bucket.
    """

    name: str
    kind: str
    weight_bits: int
    activation_bits: int
    form: str
    requested: tuple[str, ...]
    executed: tuple[str, ...]
    operands: tuple[tuple[str, str], ...]
    integer: bool
    macs: int
    status: str
    reason: str
    codes_compared: int
    accumulators_compared: int
    max_code_difference: int | None
    max_accumulator_difference: float | None
    accumulator_resolution: float
    largest_accumulator: float
    codes_probed: int
    accumulators_probed: int
    first_difference: Difference | None
    steps: tuple[StepCell, ...]


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """Attention's two products, where an engine was asked to compute them in a narrower type than float32.

    Attributes:
        precision: one of `engines.options.ATTENTION`.
        form: what multiplies, in words.
        operations: attentions that run so; those with a mask stay in float32.
        mac_share: of these, of all multiply-accumulates.
        largest_error: largest difference from the same attention in float32, as a share of the largest magnitude of
            its tensor, over all inputs that were run.
        rms_error: the same of root mean squares.
        heads_compared: with codes, heads whose integers were compared with the numerics.
        codes_compared: their codes of the softmax.
        codes_moved: of these, codes that fell on the other side of a tie, as float rounding may make them.
        accumulators_compared: their accumulators, of both products.
    """

    precision: str
    form: str
    operations: int
    mac_share: float
    largest_error: float
    rms_error: float
    heads_compared: int = 0
    codes_compared: int = 0
    codes_moved: int = 0
    accumulators_compared: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification found about one engine; `to_json` has these names at its top level.

    Attributes:
        engine: file name of the engine.
        target: engine it was exported for, as `onnxruntime`.
        mode: `exact` or `fast`.
        record_sha256: content hash of the record.
        runtime: engine and version that ran it.
        processor: processor of the machine that ran it.
        integer_mac_share: MACs of layers with integer kernels, as a share of all convolutions, linear layers and
            attention products.
        integer_mac_share_of_quantizable: the same MACs, as a share of convolutions and linear layers only.
        macs: of one sample.
        max_code_difference: largest difference of a code in any layer; None where nothing was compared.
        max_accumulator_difference: largest difference of an accumulator; None where nothing was compared.
        layers_compared: layers whose codes and accumulators were both compared.
        layers_total: layers of the record.
        codes_compared: number of codes compared in the running engine.
        accumulators_compared: number of accumulators compared in the running engine.
        codes_probed: number of codes compared for extreme inputs at every step.
        accumulators_probed: number of accumulators compared for extreme inputs at every step.
        output_psnr_db: PSNR of the engine's output to the simulation's at the worst step; 200 stands for equal.
        output_training_psnr_db: PSNR of the engine's output to the training simulation's at the worst step.
        output_margin_db: least distance by which the engine's error lies below the simulation's error against float.
        output_steps: these numbers for each step.
        steps_total: number of step buckets of the record.
        steps_checked: buckets with several inputs of their own; every bucket is met at least once.
        inputs_compared: number of samples that were run.
        float_path_difference: largest difference of a layer's input, or the output, from the float module run around
            the engine's layers, as a share of its largest magnitude; None where it could not be run.
        edges_checked: number of bucket edges checked from both sides.
        batch_equals_single: whether a mixed batch equals its samples one by one; None where batches share a step.
        layers: a report for each layer.
        float_layers: quantizable layers that run in float.
        found: what makes it not exact, layer by layer.
        notes: what else is worth knowing.
        seed: seed of the inputs.
        seconds: time the verification took.
        quantization: what quantization costs against the float model, by layer and step, which decides nothing. None
            where it was not measured.
        mixed_bits: bits chosen by layer; None where they were not.
        float_path_share: largest difference of a value between the layers, as a share of what float rounding can make
            of it; None where the float operations could not be compared.
        float_path_inputs: samples for which they were.
        sizes: of the axes that vary, every choice that was proven; those of calibration are the first.
        file_compared: whether the engine was compared with what its record makes; None where that was not asked.
        file_differences: what is not, one line each.
        file_unknown: why it could not be compared, or an empty string.
        attention: of the native engine, where it was asked for another type than float32; else None.
        left_out: steps of the proof that were not done; not part of the JSON.
    """

    engine: str
    target: str
    mode: str
    record_sha256: str
    runtime: str
    processor: str
    integer_mac_share: float
    integer_mac_share_of_quantizable: float
    macs: MacCounts
    max_code_difference: int | None
    max_accumulator_difference: float | None
    layers_compared: int
    layers_total: int
    codes_compared: int
    accumulators_compared: int
    codes_probed: int
    accumulators_probed: int
    output_psnr_db: float | None
    output_training_psnr_db: float | None
    output_margin_db: float | None
    output_steps: tuple[StepOutput, ...]
    steps_total: int
    steps_checked: tuple[int, ...]
    inputs_compared: int
    float_path_difference: float | None
    edges_checked: int
    batch_equals_single: bool | None
    layers: tuple[LayerReport, ...]
    float_layers: tuple[FloatLayer, ...]
    found: tuple[Failure, ...]
    notes: tuple[str, ...]
    seed: int
    seconds: float
    quantization: QuantizationError | None = None
    mixed_bits: MixedBits | None = None
    float_path_share: float | None = None
    float_path_inputs: int = 0
    sizes: tuple[dict[str, int], ...] = ()
    file_compared: bool | None = None
    file_differences: tuple[str, ...] = ()
    file_unknown: str = ""
    attention: AttentionReport | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def attention_in_integers(self) -> int:
        """MACs of attention's products that run in integers: what is integer and of no layer."""
        return self.macs.integer - sum(layer.macs for layer in self.layers if layer.integer)

    @property
    def failures(self) -> tuple[str, ...]:
        """What makes it not exact, in words."""
        return tuple(failure.text for failure in self.found)

    @property
    def run_failures(self) -> tuple[str, ...]:
        """The failures of what runs; the others are `file_differences`."""
        return tuple(failure.text for failure in self.found if failure.of is Fault.RUN)

    @property
    def exact(self) -> bool:
        """Whether every layer was compared and nothing differs."""
        return not self.found

    def to_json(self) -> dict[str, Any]:
        """JSON values, with `exact` and the margin of each step added."""
        plain = asdict(replace(self, quantization=None, left_out=()))
        del plain["left_out"]
        names = {"found": "failures"}
        value = {"exact": self.exact, **{names.get(key, key): entry for key, entry in plain.items()}}
        value["failures"] = self.failures
        if self.quantization is not None:
            value["quantization"] = self.quantization.to_json()
        for step, row in zip(self.output_steps, value["output_steps"], strict=True):
            row["margin_db"] = step.margin_db
        return value
