"""The report of a plan as one HTML page: no script, no file besides it."""

# ruff: noqa: E501 - markup reads better unbroken

from __future__ import annotations

from html import escape

from dq_deploy.verify.plan.report import PlanReport, summary_rows
from dq_deploy.verify.report.html import page_of

_COLOURS = {"integer": "ok", "float": "float", "unknown": "warn"}


def html_of_plan(report: PlanReport) -> str:
    """A self-contained HTML page: shares, every layer, what stands alone.

    Args:
        report: what was found.
    """
    title = f"{escape(report.engine)}: what each layer became"
    return page_of(
        title,
        [
            f"<h1>{title}</h1>",
            _verdict(report),
            _cards(report),
            _bar(report),
            _table(report),
            _alone(report),
            _words(report),
        ],
    )


def _verdict(report: PlanReport) -> str:
    told = report.attestation
    asked = [layer for layer in told.layers if layer.requested == "integer"]
    good = all(layer.executed == "integer" for layer in asked) and not told.problem
    text = "every layer asked to be integer is" if good else told.problem or "not every layer asked to be integer is"
    badge = f'<span class="badge {"good" if good else "fail"}">{escape(text)}</span>'
    return f"{badge}<p>Read from the plan without running it. The types are those of each product's operands; the kernel itself is chosen on the GPU.</p>"


def _cards(report: PlanReport) -> str:
    told = report.attestation
    integer = sum(layer.executed == "integer" for layer in told.layers)
    cards = [
        (f"{told.integer_mac_share:.2%}", "of all MACs take integers"),
        (f"{told.integer_mac_share_of_quantizable:.2%}", "of the quantizable MACs"),
        (f"{integer} / {len(told.layers)}", "layers integer"),
        (f"{len(told.unfused)}", "kernels stand alone"),
        (f"{report.im2col_bytes:,}", "bytes of int8 patches a sample"),
    ]
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
        + "</div>"
    )


def _bar(report: PlanReport) -> str:
    """MACs by what became of them."""
    total = max(1, report.macs["of_all"])
    rows = report.attestation.layers
    parts = [(kind, sum(row.macs for row in rows if row.executed == kind), colour) for kind, colour in _COLOURS.items()]
    parts.append(
        ("layers that were never quantized", report.macs["of_quantizable"] - sum(row.macs for row in rows), "float")
    )
    parts.append(("attention products", report.macs["attention"], "none"))
    x, bars, key = 0.0, [], []
    for name, count, colour in parts:
        if count <= 0:
            continue
        width = 1000 * count / total
        bars.append(
            f'<rect x="{x:.2f}" width="{max(width - 2, 0.5):.2f}" height="34" rx="4" style="fill:var(--{colour})"><title>{name}: {count / total:.2%}</title></rect>'
        )
        key.append(
            f'<span><i class="dot" style="background:var(--{colour})"></i>{name} <b>{count / total:.2%}</b></span>'
        )
        x += width
    svg = f'<svg viewBox="0 0 1000 34" width="100%" height="34" preserveAspectRatio="none">{"".join(bars)}</svg>'
    return f'<section><h2>Multiply-accumulates</h2>{svg}<div class="key" style="margin-top:12px">{"".join(key)}</div></section>'


def _table(report: PlanReport) -> str:
    total = max(1, report.macs["of_all"])
    rows = [
        f"<tr><td><code>{escape(layer.name)}</code></td><td>{layer.requested}</td>"
        f'<td><i class="dot" style="background:var(--{_COLOURS[layer.executed]})"></i>{layer.executed}</td>'
        f"<td>{escape(', '.join(layer.operands))}</td><td class=n>{layer.macs / total:.2%}</td><td>{escape(layer.why)}</td></tr>"
        for layer in report.attestation.layers
    ]
    head = (
        "<tr><th>layer</th><th>requested</th><th>executed</th><th>operands</th><th class=n>MACs</th><th>why</th></tr>"
    )
    return f"<section><h2>Layers</h2><table>{head}{''.join(rows)}</table></section>"


def _alone(report: PlanReport) -> str:
    if not report.attestation.unfused:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(row['role']))}</td><td><code>{escape(str(row['kernel']))}</code></td><td>{escape(', '.join(row['nodes'][:4]))}</td></tr>"
        for row in report.attestation.unfused
    )
    head = "<tr><th>does</th><th>kernel</th><th>nodes</th></tr>"
    return f"<section><h2>Standing alone</h2><p>Kernels that hold nothing but what the exporter added for a layer.</p><table>{head}{rows}</table></section>"


def _words(report: PlanReport) -> str:
    rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in summary_rows(report))
    return f"<section><h2>In words</h2><table>{rows}</table></section>"
