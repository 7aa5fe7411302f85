"""The reports as HTML pages: one file each, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import MissingDependencyError
from dq_deploy.verify.output.difference import DECIBEL_LIMIT, REQUIRED_MARGIN_DB
from dq_deploy.verify.plan.report import PlanReport
from dq_deploy.verify.plan.words import summary_rows as plan_rows
from dq_deploy.verify.report.drawing import share_bar
from dq_deploy.verify.report.heat_map import bits_picture, bits_text, error_map
from dq_deploy.verify.report.pictures import kernels_bar, outputs_picture, steps_picture
from dq_deploy.verify.report.values import Report
from dq_deploy.verify.report.words import difference_text, short_kernel, summary_rows

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_FAILURES = 20
"""Failures that are shown one by one."""

STATUS_COLOURS = {"exact": "ok", "differs": "bad", "unsafe": "bad", "unproven": "warn", "float": "float"}
PLAN_COLOURS = {"integer": "ok", "float": "float", "unknown": "warn"}

Card = tuple[str, str]


def require_jinja() -> None:
    """Refuse early where no page could be written.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingDependencyError("an HTML page needs Jinja2, which is not installed; pip install jinja2")


def page_of_report(report: Report) -> str:
    """A self-contained HTML page: summary, layer x step picture, kernels, outputs, every layer.

    Args:
        report: what was found.
    """
    listed = {layer.name for layer in report.layers}
    return _rendered(
        "proof.html",
        report=report,
        cards=_cards(report),
        failures=report.failures[:MOST_FAILURES],
        errors=error_map(report),
        bits=bits_picture(report),
        bits_text=bits_text(report),
        steps=steps_picture(report),
        kernels=kernels_bar(report),
        outputs=outputs_picture(report) if report.output_steps else None,
        margin=REQUIRED_MARGIN_DB,
        rows=summary_rows(report),
        not_done=[left for left in report.left_out if left.lacking],
        never_quantized=[row for row in report.float_layers if row.name not in listed],
        colours=STATUS_COLOURS,
    )


def page_of_plan(report: PlanReport) -> str:
    """A self-contained HTML page: shares, every layer, what stands alone.

    Args:
        report: what was found.
    """
    told, macs = report.attestation, report.macs
    asked = [layer for layer in told.layers if layer.requested == "integer"]
    good = all(layer.executed == "integer" for layer in asked) and not told.problem
    shares = [
        (kind, sum(layer.macs for layer in told.layers if layer.executed == kind), colour, 1.0)
        for kind, colour in PLAN_COLOURS.items()
    ]
    never = macs.of_quantizable - sum(layer.macs for layer in told.layers)
    shares += [("layers that were never quantized", never, "float", 1.0)]
    shares += [("attention products", macs.attention, "none", 1.0)]
    return _rendered(
        "plan.html",
        report=report,
        told=told,
        good=good,
        cards=_plan_cards(report),
        bar=share_bar(shares, max(1, macs.of_all)),
        rows=plan_rows(report),
        not_done=[left for left in report.left_out if left.lacking],
        colours=PLAN_COLOURS,
    )


def _cards(report: Report) -> list[Card]:
    cards = [
        (f"{report.integer_mac_share:.2%}", "of all MACs run in integers"),
        (f"{report.layers_compared} / {report.layers_total}", "layers compared"),
        (difference_text(report.max_code_difference), f"largest difference in {report.codes_compared:,} codes"),
        (
            difference_text(report.max_accumulator_difference),
            f"largest in {report.accumulators_compared:,} accumulators",
        ),
        (f"{report.edges_checked}", "step edges checked from both sides"),
    ]
    if report.output_psnr_db is not None:
        text = "equal" if report.output_psnr_db >= DECIBEL_LIMIT else f"{report.output_psnr_db:.1f} dB"
        cards.append((text, "output against the simulation, worst step"))
    worst = report.quantization.worst(1) if report.quantization is not None else []
    return cards + [
        (f"{found.sqnr_db:.1f} dB", f"quantization: worst layer against float, {found.bits}") for found in worst
    ]


def _plan_cards(report: PlanReport) -> list[Card]:
    told = report.attestation
    integer = sum(layer.executed == "integer" for layer in told.layers)
    return [
        (f"{told.integer_mac_share:.2%}", "of all MACs take integers"),
        (f"{told.integer_mac_share_of_quantizable:.2%}", "of the quantizable MACs"),
        (f"{integer} / {len(told.layers)}", "layers integer"),
        (f"{len(told.unfused)}", "kernels stand alone"),
        (f"{report.im2col_bytes:,}", "bytes of int8 patches a sample"),
    ]


def _rendered(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(values)


def _environment() -> Environment:
    """Templates whose values are escaped; a name they do not get is an error.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    require_jinja()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("dq_deploy.verify.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": lambda value: f"{value:.2%}",
        "count": lambda value: f"{value:,.0f}",
        "short": lambda value: f"{value:g}",
        "pixels": lambda value: f"{value:.6g}",
        "difference": difference_text,
        "kernel": short_kernel,
        "paint": _paint,
    }
    return made


def _paint(colour: str) -> str:
    """A colour for a style: one of the page's own by its name, or as it is."""
    return colour if colour.startswith("#") else f"var(--{colour})"
