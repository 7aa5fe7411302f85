"""The report as one HTML page: no script, no file besides it."""

# ruff: noqa: E501, PERF401 - markup reads better unbroken

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from dq_deploy.verify.output.difference import DECIBEL_LIMIT, REQUIRED_MARGIN_DB
from dq_deploy.verify.report.heat_map import error_section, short_name
from dq_deploy.verify.report.values import LayerReport, Report, StepCell, short_kernel, summary_rows

CELL, GAP, LABEL, TOP = 20, 3, 250, 58

_CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#667085;--line:#e3e7ed;--ok:#1a9c74;
--ok2:#8fd6bf;--bad:#d92d3f;--warn:#d99a1c;--float:#8d5bd6;--none:#d7dce3;--sim:#9aa8bd}
@media (prefers-color-scheme:dark){:root{--bg:#10141a;--card:#181e27;--ink:#e6ebf2;--soft:#93a0b4;--line:#2a3340;
--ok:#2fb98d;--ok2:#1d6b55;--bad:#ff5c6c;--warn:#e6b04a;--float:#a883ea;--none:#333d4a;--sim:#5d6b80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 4px}p{margin:4px 0 14px;color:var(--soft);max-width:78ch}
.badge{display:inline-block;padding:3px 12px;border-radius:999px;color:#fff;font-weight:600;font-size:14px}
.good{background:var(--ok)}.fail{background:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:12px;margin:22px 0}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.card{padding:14px 16px}.card b{display:block;font-size:23px;line-height:1.2;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}section{padding:20px;margin:16px 0;overflow-x:auto}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft);font-size:11px}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:500;border-bottom:1px solid var(--line);padding:6px 8px;white-space:nowrap}
td{padding:5px 8px;border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
.key{display:flex;gap:18px;flex-wrap:wrap;font-size:13px;color:var(--soft);margin:0 0 12px}
ul{margin:6px 0;padding-left:20px}code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12.5px}
"""

_STATUS = {"exact": "ok", "differs": "bad", "unsafe": "bad", "unproven": "warn", "float": "float"}
_KEY = (
    ("ok", "codes and accumulators equal, several inputs"),
    ("ok2", "equal, one input in a mixed batch"),
    ("bad", "different"),
    ("warn", "compared in part"),
    ("float", "runs in float"),
    ("none", "not compared"),
)


def html_of_report(report: Report) -> str:
    """A self-contained HTML page: summary, layer x step picture, kernels, outputs, every layer.

    Args:
        report: what was found.
    """
    verdict = ("good", "exact") if report.exact else ("fail", "not exact")
    title = escape(f"{report.engine}: verified")
    body = [
        f'<h1>{escape(report.engine)} <span class="badge {verdict[0]}">{verdict[1]}</span></h1>',
        f"<p>Target {escape(report.target)}, mode {escape(report.mode)}, record {report.record_sha256[:12]}, "
        f"run by {escape(report.runtime)} on {escape(report.processor)}.</p>",
        _cards(report),
        _findings(report),
        error_section(report),
        _picture(report),
        _kernels(report),
        _outputs(report),
        _summary(report),
        _table(report),
    ]
    return page_of(title, body)


def page_of(title: str, body: Iterable[str]) -> str:
    """One page of these pieces, with the styles of all reports.

    Args:
        title: already escaped.
        body: markup.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f"<style>{_CSS}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _difference(value: float | None) -> str:
    return "none read" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _cards(report: Report) -> str:
    cards = [
        (f"{report.integer_mac_share:.2%}", "of all MACs run in integers"),
        (f"{report.layers_compared} / {report.layers_total}", "layers compared"),
        (_difference(report.max_code_difference), f"largest difference in {report.codes_compared:,} codes"),
        (_difference(report.max_accumulator_difference), f"largest in {report.accumulators_compared:,} accumulators"),
        (f"{report.edges_checked}", "step edges checked from both sides"),
    ]
    if report.output_psnr_db is not None:
        text = "equal" if report.output_psnr_db >= DECIBEL_LIMIT else f"{report.output_psnr_db:.1f} dB"
        cards.append((text, "output against the simulation, worst step"))
    for found in report.quantization.worst(1) if report.quantization is not None else []:
        cards.append((f"{found['sqnr_db']:.1f} dB", f"quantization: worst layer against float, {found['bits']}"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
        + "</div>"
    )


def _findings(report: Report) -> str:
    if not report.failures and not report.notes:
        return ""
    lines = [f"<li>{escape(text)}</li>" for text in (*report.failures[:20], *report.notes)]
    more = f"<p>and {len(report.failures) - 20} more</p>" if len(report.failures) > 20 else ""
    return f"<section><h2>Findings</h2><ul>{''.join(lines)}</ul>{more}</section>"


def _cell_class(layer: LayerReport, cell: StepCell | None) -> str:
    if cell is None:
        return "float" if layer.status == "float" else "none"
    if cell.code_differences or cell.accumulator_differences:
        return "bad"
    if not cell.accumulators_compared:
        return "warn"
    return "ok" if cell.samples > len(layer.operands) else "ok2"


def _cell_text(layer: LayerReport, bucket: int, cell: StepCell | None) -> str:
    if cell is None:
        return f"{layer.name}, step {bucket}: {layer.status}, not compared"
    return (
        f"{layer.name}, step {bucket} (timestep {cell.timestep:g}): {cell.codes_compared:,} codes, "
        f"{cell.code_differences:,} differ by up to {cell.max_code_difference}; {cell.accumulators_compared:,} "
        f"accumulators, {cell.accumulator_differences:,} differ by up to {_difference(cell.max_accumulator_difference)}"
    )


def _picture(report: Report) -> str:
    """Layers down, step buckets across."""
    steps = report.steps_total
    pitch = max(4, min(2 * CELL, 780 // max(1, steps)))
    size = pitch - (GAP if pitch > 8 else 1)
    row = CELL + GAP
    width, height = LABEL + steps * pitch + 70, TOP + len(report.layers) * row + 6
    marks = [
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="layers by steps">'
    ]
    every = max(1, -(-30 // pitch))
    timesteps = {cell.bucket: cell.timestep for layer in report.layers for cell in layer.steps}
    marks.append(f'<text class="soft" x="{LABEL - 10}" y="22" text-anchor="end">step bucket</text>')
    marks.append(f'<text class="soft" x="{LABEL - 10}" y="42" text-anchor="end">timestep</text>')
    for bucket in range(0, steps, every):
        x = LABEL + bucket * pitch + size / 2
        marks.append(f'<text class="soft" x="{x:g}" y="22" text-anchor="middle">{bucket}</text>')
        if bucket in timesteps:
            marks.append(f'<text class="soft" x="{x:g}" y="42" text-anchor="middle">{timesteps[bucket]:.0f}</text>')
    for i, layer in enumerate(report.layers):
        y = TOP + i * row
        cells = {cell.bucket: cell for cell in layer.steps}
        marks.append(f'<text x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(short_name(layer.name))}</text>')
        for bucket in range(steps):
            cell = cells.get(bucket)
            marks.append(
                f'<rect x="{LABEL + bucket * pitch}" y="{y}" width="{size}" height="{CELL}" rx="{3 if size > 8 else 1}" '
                f'style="fill:var(--{_cell_class(layer, cell)})"><title>{escape(_cell_text(layer, bucket, cell))}</title></rect>'
            )
        marks.append(
            f'<text class="soft" x="{LABEL + steps * pitch + 6}" y="{y + 14}">{layer.macs / report.macs["of_all"]:.1%}</text>'
        )
    marks.append("</svg>")
    used = {
        _cell_class(layer, next((c for c in layer.steps if c.bucket == b), None))
        for layer in report.layers
        for b in range(steps)
    }
    key = "".join(f'<span><i class="dot" style="background:var(--{c})"></i>{t}</span>' for c, t in _KEY if c in used)
    return (
        "<section><h2>Every layer at every step</h2><p>Codes and accumulators read inside the running engine against the "
        "numerics applied to the very input the layer received. Point at a cell for its counts; the share of all MACs "
        f'stands on the right.</p><div class="key">{key}</div>{"".join(marks)}</section>'
    )


def _kernels(report: Report) -> str:
    """One bar: MACs by kernel."""
    groups: dict[str, tuple[int, str]] = {}
    for layer in report.layers:
        name = short_kernel(layer)
        colour = "ok" if layer.integer else "float"
        groups[name] = (groups.get(name, (0, colour))[0] + layer.macs, colour)
    rest = report.macs["of_quantizable"] - sum(count for count, _ in groups.values())
    if rest:
        groups["layers kept in float"] = (rest, "float")
    groups["attention products, float"] = (report.macs["attention"], "none")
    total, x, bars, key = report.macs["of_all"], 0.0, [], []
    ranked = sorted(groups.items(), key=lambda item: (item[1][1] != "ok", -item[1][0]))
    for index, (name, (count, colour)) in enumerate(ranked):
        width = 1000 * count / total
        shade = max(0.45, 1 - 0.25 * index) if colour == "ok" else 1.0
        bars.append(
            f'<rect x="{x:.2f}" width="{max(width - 2, 0.5):.2f}" height="34" rx="4" '
            f'style="fill:var(--{colour});opacity:{shade}"><title>{escape(name)}: {count / total:.2%}</title></rect>'
        )
        key.append(
            f'<span><i class="dot" style="background:var(--{colour});opacity:{shade}"></i>{escape(name)} '
            f"<b>{count / total:.2%}</b></span>"
        )
        x += width
    return (
        "<section><h2>Kernels that run</h2><p>Read from the engine's own optimized graph, weighted by multiply-accumulates "
        f'({total:,} a sample).</p><svg viewBox="0 0 1000 34" width="100%" height="34" preserveAspectRatio="none">'
        f'{"".join(bars)}</svg><div class="key" style="margin-top:12px">{"".join(key)}</div></section>'
    )


def _outputs(report: Report) -> str:
    """Bars by step: engine against simulation, and simulation against float."""
    steps = report.output_steps
    if not steps:
        return ""
    pitch, height, left = max(16, min(56, 960 // len(steps))), 170, 46
    top = (
        max(120.0, *(s.engine_psnr_db for s in steps if s.engine_psnr_db < DECIBEL_LIMIT))
        if any(s.engine_psnr_db < DECIBEL_LIMIT for s in steps)
        else 120.0
    )
    marks = [
        f'<svg width="{left + len(steps) * pitch + 10}" height="{height + 44}" role="img" aria-label="output error by step">'
    ]
    for level in range(0, int(top) + 1, 40):
        y = height - level / top * (height - 20)
        marks.append(
            f'<line x1="{left}" x2="{left + len(steps) * pitch}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:var(--line)"/>'
        )
        marks.append(f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{level} dB</text>')
    bar = pitch * 0.36
    for i, step in enumerate(steps):
        x = left + i * pitch + pitch * 0.12
        values = [
            ("ok", step.engine_psnr_db, "engine against simulation"),
            ("sim", step.simulation_psnr_db, "simulation against float"),
        ]
        for j, (colour, value, what) in enumerate(values):
            if value is None:
                continue
            tall = min(value, top) / top * (height - 20)
            words = "equal" if value >= DECIBEL_LIMIT else f"{value:.1f} dB"
            marks.append(
                f'<rect x="{x + j * (bar + 1):.1f}" y="{height - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" rx="2" '
                f'style="fill:var(--{colour})"><title>step {step.bucket}: {what} {words}</title></rect>'
            )
        if i % max(1, -(-30 // pitch)) == 0:
            marks.append(
                f'<text class="soft" x="{x + bar:.1f}" y="{height + 16}" text-anchor="middle">{step.timestep:.0f}</text>'
            )
    marks.append(f'<text class="soft" x="{left}" y="{height + 36}">timestep</text></svg>')
    key = (
        '<span><i class="dot" style="background:var(--ok)"></i>engine against the simulation (a full bar: equal)</span>'
    )
    if report.output_margin_db is not None:
        key += '<span><i class="dot" style="background:var(--sim)"></i>simulation against the float model</span>'
    return (
        "<section><h2>Output of the denoiser</h2><p>Peak signal-to-noise ratio at each step. The first must lie "
        f'{REQUIRED_MARGIN_DB:g} dB above the second.</p><div class="key">{key}</div>{"".join(marks)}</section>'
    )


def _summary(report: Report) -> str:
    rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in summary_rows(report))
    return f"<section><h2>In words</h2><table>{rows}</table></section>"


def _table(report: Report) -> str:
    rows = []
    for layer in report.layers:
        cells = (
            f"<td><code>{escape(layer.name)}</code></td><td>W{layer.weight_bits}A{layer.activation_bits}</td>"
            f"<td>{escape(short_kernel(layer))}</td><td class=n>{layer.macs / report.macs['of_all']:.2%}</td>"
            f"<td class=n>{layer.codes_compared:,}</td><td class=n>{_difference(layer.max_code_difference)}</td>"
            f"<td class=n>{layer.accumulators_compared:,}</td>"
            f"<td class=n>{_difference(layer.max_accumulator_difference)}</td>"
            f"<td class=n>{layer.largest_accumulator:,.0f}</td><td class=n>{layer.accumulator_resolution:g}</td>"
        )
        dot = f'<i class="dot" style="background:var(--{_STATUS[layer.status]})"></i>{layer.status}'
        reason = f"<br><small>{escape(layer.reason)}</small>" if layer.reason else ""
        rows.append(f"<tr>{cells}<td>{dot}{reason}</td></tr>")
    for row in report.float_layers:
        if all(layer.name != row["name"] for layer in report.layers):
            rows.append(
                f"<tr><td><code>{escape(row['name'])}</code></td><td>float</td><td></td>"
                f"<td class=n>{row['macs'] / report.macs['of_all']:.2%}</td><td colspan=6></td>"
                f"<td><i class=dot style='background:var(--float)'></i>float<br><small>{escape(row['reason'])}</small></td></tr>"
            )
    head = (
        "<tr><th>layer</th><th>bits</th><th>kernel</th><th class=n>MACs</th><th class=n>codes</th><th class=n>max diff</th>"
        "<th class=n>accumulators</th><th class=n>max diff</th><th class=n>largest |A|</th><th class=n>resolution</th>"
        "<th>status</th></tr>"
    )
    return f"<section><h2>Layers</h2><table>{head}{''.join(rows)}</table></section>"
