"""The report in words: what the terminal and the HTML page both say."""

from __future__ import annotations

from collections.abc import Mapping

from dq_deploy.verify.report.values import LayerReport, Report


def short_kernel(layer: LayerReport) -> str:
    """Kernel and operand types in a few characters: `MatMulIntegerToFloat u8 x s8`."""
    short = {"uint8": "u8", "int8": "s8", "int4": "s4", "float32": "f32", "unknown": "?"}
    pieces = [
        f"{op.rsplit('.', 1)[-1]} {short.get(a, a)} x {short.get(b, b)}"
        for op, (a, b) in zip(layer.executed, layer.operands, strict=True)
    ]
    return ", ".join(dict.fromkeys(pieces))


def number_text(value: float | None) -> str:
    """A count or a difference with few digits; a dash where there is none."""
    return "-" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def difference_text(value: float | None) -> str:
    """A largest difference with few digits."""
    return "none read" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def size_text(sizes: Mapping[str, int]) -> str:
    """Sizes that vary, in words: `height 8, width 8, tokens 77`."""
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _file_row(report: Report) -> list[tuple[str, str]]:
    """Whether the file is what its record makes."""
    if report.file_compared is None:
        return []
    if not report.file_compared:
        return [("file", f"not compared with what its record makes: {report.file_unknown}")]
    if report.file_differences:
        return [("file", f"not what its record makes: {len(report.file_differences)} differences")]
    return [("file", "what its record makes, every node and constant of it")]


def _attention_rows(report: Report) -> list[tuple[str, str]]:
    """Attention's products, where they are in another type than float32."""
    own = report.attention
    if own is None:
        return []
    error = f"rms {own.rms_error:.2g}, largest {own.largest_error:.2g} of its range"
    rows = [
        (
            "attention",
            f"{own.mac_share:.2%} of all MACs, {own.operations} operations in {own.precision} by {own.form}; from "
            f"float32: {error}",
        )
    ]
    if own.heads_compared:
        text = (
            f"{own.heads_compared:,} heads compared: {own.accumulators_compared:,} accumulators, "
            f"{own.codes_compared:,} codes of the softmax, of which {own.codes_moved:,} lie on the other side of a tie"
        )
        rows.append(("attention codes", text))
    return rows


def summary_rows(report: Report) -> list[tuple[str, str]]:
    """The summary in words, for the terminal and the HTML page."""
    share, quantizable = report.integer_mac_share, report.integer_mac_share_of_quantizable
    verdict = (
        "exact: every layer compared, no difference" if report.exact else f"not exact: {len(report.failures)} findings"
    )
    gaps = number_text(report.max_code_difference), number_text(report.max_accumulator_difference)
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
    rows += _attention_rows(report)
    if report.sizes:
        rows.append(("sizes", "; ".join(size_text(sizes) for sizes in report.sizes)))
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
