"""What a verification found, as values, as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dq_deploy.verify.cost.quantization_error import QuantizationError
    from dq_deploy.verify.layers.compare import Difference
    from dq_deploy.verify.output.difference import StepOutput

STATUSES = ("exact", "differs", "unsafe", "unproven", "float")
"""Of a layer: proven equal; compared and different; exact here but not on every CPU; not compared; not integer."""


def failure_of_file(difference: str) -> str:
    """How a difference between an engine and what its record makes stands among the failures."""
    return f"not what its record makes: {difference}"


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
        weight_bits: of its codes.
        activation_bits: likewise.
        form: what the exporter wrote.
        requested: kernel in the shipped file.
        executed: kernel in the engine's optimized graph, one a part.
        operands: operand types of each part's kernel, activations then weights.
        integer: whether every part's kernel takes two integer operands.
        macs: multiply-accumulates of one sample.
        status: one of `STATUSES`.
        reason: why the status is not `exact`.
        codes_compared: in the running engine; None where nothing was.
        accumulators_compared: likewise.
        max_code_difference: in the engine and in the probe; None where nothing was compared.
        max_accumulator_difference: likewise.
        accumulator_resolution: float32 spacing at the largest accumulator: 1 where every integer is told apart.
        largest_accumulator: largest magnitude seen.
        codes_probed: codes compared for extreme inputs at every step.
        accumulators_probed: likewise.
        first_difference: the first bad coordinate, or None.
        steps: by step bucket.
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
class Report:
    """Parity and attestation of one engine; `to_json` has these names at its top level.

    Attributes:
        engine: file name of the engine.
        target: what it was exported for.
        mode: `exact` or `fast`.
        record_sha256: of the quantized model.
        runtime: engine and version that ran it.
        processor: this machine's.
        integer_mac_share: MACs of layers with integer kernels, as a share of all convolutions, linear layers and
            attention products.
        integer_mac_share_of_quantizable: as a share of convolutions and linear layers.
        macs: `of_all`, `of_quantizable`, `attention`, `integer`.
        max_code_difference: over all layers; None where nothing was compared.
        max_accumulator_difference: likewise.
        layers_compared: layers whose codes and accumulators were both compared.
        layers_total: layers of the record.
        codes_compared: number, in the running engine.
        accumulators_compared: likewise.
        codes_probed: number, for extreme inputs at every step.
        accumulators_probed: likewise.
        output_psnr_db: engine against the simulation at the worst step, see `StepOutput`; 200 stands for equal.
        output_training_psnr_db: engine against the training simulation at the worst step.
        output_margin_db: least distance by which the engine's error lies below simulation against float.
        output_steps: both by step.
        steps_total: step buckets of the record.
        steps_checked: buckets with several inputs of their own; every bucket is met at least once.
        inputs_compared: samples that were run.
        float_path_difference: largest difference of a layer's input, or the output, from the float module run around
            the engine's layers, as a share of its largest magnitude; None where it could not be run.
        edges_checked: bucket edges looked at from both sides.
        batch_equals_single: whether a mixed batch equals its samples one by one; None where batches share a step.
        layers: one by one.
        float_layers: quantizable layers that run in float: name, macs, reason.
        failures: what --exact refuses, in words, layer by layer.
        notes: what else is worth knowing.
        seed: of the inputs.
        seconds: time taken.
        quantization: what quantization costs against the float model, by layer and step; no part of the verdict. None
            where it was not measured.
        mixed_bits: bits chosen by layer, see `mixed_bits_of`; None where they were not.
        float_path_share: largest difference of a value between the layers, as a share of what float rounding can make
            of it; None where the float operations could not be compared.
        float_path_inputs: samples for which they were.
        file_compared: whether the engine was compared with what its record makes; None where that was not asked.
        file_differences: what is not, one line each; exit 3 with and without --exact.
        file_unknown: why it could not be compared, or an empty string.
    """

    engine: str
    target: str
    mode: str
    record_sha256: str
    runtime: str
    processor: str
    integer_mac_share: float
    integer_mac_share_of_quantizable: float
    macs: dict[str, int]
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
    float_layers: tuple[dict[str, Any], ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    seed: int
    seconds: float
    quantization: QuantizationError | None = None
    mixed_bits: dict[str, Any] | None = None
    float_path_share: float | None = None
    float_path_inputs: int = 0
    file_compared: bool | None = None
    file_differences: tuple[str, ...] = ()
    file_unknown: str = ""

    @property
    def run_failures(self) -> tuple[str, ...]:
        """The failures of what runs; the others are `file_differences`."""
        of_file = {failure_of_file(text) for text in self.file_differences}
        return tuple(text for text in self.failures if text not in of_file)

    @property
    def exact(self) -> bool:
        """Whether every layer was compared and nothing differs."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """JSON values, with `exact` and the margin of each step added."""
        value = {"exact": self.exact, **asdict(replace(self, quantization=None))}
        if self.quantization is not None:
            value["quantization"] = self.quantization.to_json()
        for step, row in zip(self.output_steps, value["output_steps"], strict=True):
            row["margin_db"] = step.margin_db
        return value


_STYLES = {"exact": "green", "differs": "bold red", "unsafe": "bold red", "unproven": "yellow", "float": "magenta"}


def short_kernel(layer: LayerReport) -> str:
    """Kernel and operand types in a few characters: `MatMulIntegerToFloat u8 x s8`."""
    short = {"uint8": "u8", "int8": "s8", "int4": "s4", "float32": "f32", "unknown": "?"}
    pieces = [
        f"{op.rsplit('.', 1)[-1]} {short.get(a, a)} x {short.get(b, b)}"
        for op, (a, b) in zip(layer.executed, layer.operands, strict=True)
    ]
    return ", ".join(dict.fromkeys(pieces))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def print_report(report: Report, console: Console) -> None:
    """Print the layers, then the summary."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{report.engine}: every layer against the numerics", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("bits")
    table.add_column("kernel that runs", overflow="fold")
    for column in ("codes", "max diff", "accumulators", "max diff", "MACs %"):
        table.add_column(column, justify="right")
    table.add_column("status")
    for layer in report.layers:
        table.add_row(
            layer.name,
            f"W{layer.weight_bits}A{layer.activation_bits}",
            short_kernel(layer),
            _number(layer.codes_compared),
            _number(layer.max_code_difference),
            _number(layer.accumulators_compared),
            _number(layer.max_accumulator_difference),
            f"{100 * layer.macs / report.macs['of_all']:.1f}",
            Text(layer.status, style=_STYLES[layer.status]),
        )
    console.print(table)
    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in summary_rows(report):
        facts.add_row(name, value)
    console.print(facts)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for failure in report.failures[:10]:
        console.print(Text(f"not exact: {failure}", style="red"))
    if len(report.failures) > 10:
        console.print(Text(f"not exact: {len(report.failures) - 10} more, see --json", style="red"))


def _file_row(report: Report) -> list[tuple[str, str]]:
    """Whether the file is what its record makes."""
    if report.file_compared is None:
        return []
    if not report.file_compared:
        return [("file", f"not compared with what its record makes: {report.file_unknown}")]
    if report.file_differences:
        return [("file", f"not what its record makes: {len(report.file_differences)} differences")]
    return [("file", "what its record makes, every node and constant of it")]


def summary_rows(report: Report) -> list[tuple[str, str]]:
    """The summary in words, for the terminal and the HTML page."""
    share, quantizable = report.integer_mac_share, report.integer_mac_share_of_quantizable
    verdict = (
        "exact: every layer compared, no difference" if report.exact else f"not exact: {len(report.failures)} findings"
    )
    gaps = _number(report.max_code_difference), _number(report.max_accumulator_difference)
    probed = f"{report.codes_probed:,} codes and {report.accumulators_probed:,} accumulators"
    rows = [
        ("verdict", verdict),
        *_file_row(report),
        ("integer MACs", f"{share:.2%} of all, {quantizable:.2%} of quantizable"),
        ("layers compared", f"{report.layers_compared} of {report.layers_total}"),
        ("codes", f"{report.codes_compared:,} compared, largest difference {gaps[0]}"),
        ("accumulators", f"{report.accumulators_compared:,} compared, largest difference {gaps[1]}"),
        ("extreme inputs", f"{probed} at all {report.steps_total} steps"),
        ("step edges", f"{report.edges_checked} checked from both sides"),
    ]  # fmt: skip
    if report.batch_equals_single is not None:
        rows.append(
            (
                "mixed batch",
                "equal to one by one, bit for bit" if report.batch_equals_single else "differs from one by one",
            )
        )
    if report.output_psnr_db is not None:
        equal = " (equal)" if report.output_psnr_db >= 200 else ""
        rows.append(("output", f"{report.output_psnr_db:.1f} dB{equal} against the simulation, worst step"))
    if report.output_training_psnr_db is not None:
        rows.append(("output, torch", f"{report.output_training_psnr_db:.1f} dB against the training simulation"))
    if report.output_margin_db is not None:
        rows.append(
            ("margin", f"{report.output_margin_db:.1f} dB below the simulation's error against float, worst step")
        )
    if report.float_path_difference is not None:
        rows.append(
            (
                "float operations",
                f"between the layers within {report.float_path_difference:.1g} of the float module's in "
                f"{report.float_path_inputs} inputs, {report.float_path_share or 0:.0%} of what rounding can make",
            )
        )
    if report.quantization is not None:
        rows += report.quantization.rows()
    rows.append(("engine", f"{report.runtime} on {report.processor}; {report.seconds:.1f} s"))
    return rows
