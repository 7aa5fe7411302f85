"""The pictures of a proof: layers by steps, kernels by their work, outputs by step."""

from __future__ import annotations

from dq_deploy.verify.output.difference import DECIBEL_LIMIT
from dq_deploy.verify.report.drawing import Drawn, Key, Line, Picture, Rect, Word, share_bar
from dq_deploy.verify.report.heat_map import short_name
from dq_deploy.verify.report.values import LayerReport, Report, StepCell
from dq_deploy.verify.report.words import difference_text, short_kernel

CELL, GAP, LABEL, TOP = 20, 3, 250, 58

_KEYS = (
    ("ok", "codes and accumulators equal, several inputs"),
    ("ok2", "equal, one input in a mixed batch"),
    ("bad", "different"),
    ("warn", "compared in part"),
    ("float", "runs in float"),
    ("none", "not compared"),
)


def steps_picture(report: Report) -> Drawn:
    """Layers down, step buckets across."""
    steps = report.steps_total
    pitch = max(4, min(2 * CELL, 780 // max(1, steps)))
    size = pitch - (GAP if pitch > 8 else 1)
    row = CELL + GAP
    rects, words, used = [], _step_words(report, pitch, size), set()
    for i, layer in enumerate(report.layers):
        y = TOP + i * row
        cells = {cell.bucket: cell for cell in layer.steps}
        share = f"{layer.macs / report.macs.of_all:.1%}"
        words.append(Word(x=LABEL - 10, y=y + 14, text=short_name(layer.name), anchor="end"))
        words.append(Word(x=LABEL + steps * pitch + 6, y=y + 14, text=share, colour="soft", small=True))
        for bucket in range(steps):
            cell = cells.get(bucket)
            fill = _cell_fill(layer, cell)
            used.add(fill)
            rects.append(
                Rect(x=LABEL + bucket * pitch, y=y, width=size, height=CELL, fill=fill, radius=3 if size > 8 else 1,
                     title=_cell_text(layer, bucket, cell))
            )  # fmt: skip
    picture = Picture(
        width=LABEL + steps * pitch + 70,
        height=TOP + len(report.layers) * row + 6,
        label="layers by steps",
        rects=tuple(rects),
        words=tuple(words),
    )
    return Drawn(picture=picture, keys=tuple(Key(fill=fill, text=text) for fill, text in _KEYS if fill in used))


def _step_words(report: Report, pitch: float, size: float) -> list[Word]:
    """Step buckets and timesteps above the picture, as many as there is room for."""
    words = [
        Word(x=LABEL - 10, y=22, text="step bucket", anchor="end", colour="soft", small=True),
        Word(x=LABEL - 10, y=42, text="timestep", anchor="end", colour="soft", small=True),
    ]
    timesteps = {cell.bucket: cell.timestep for layer in report.layers for cell in layer.steps}
    for bucket in range(0, report.steps_total, every(30, pitch)):
        x = LABEL + bucket * pitch + size / 2
        words.append(Word(x=x, y=22, text=str(bucket), anchor="middle", colour="soft", small=True))
        if bucket in timesteps:
            text = f"{timesteps[bucket]:.0f}"
            words.append(Word(x=x, y=42, text=text, anchor="middle", colour="soft", small=True))
    return words


def every(room: float, pitch: float) -> int:
    """Of how many columns one can be named, where a name needs some room."""
    return max(1, int(-(-room // pitch)))


def _cell_fill(layer: LayerReport, cell: StepCell | None) -> str:
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
    gap = difference_text(cell.max_accumulator_difference)
    return (
        f"{layer.name}, step {bucket} (timestep {cell.timestep:g}): {cell.codes_compared:,} codes, "
        f"{cell.code_differences:,} differ by up to {cell.max_code_difference}; {cell.accumulators_compared:,} "
        f"accumulators, {cell.accumulator_differences:,} differ by up to {gap}"
    )


def kernels_bar(report: Report) -> Drawn:
    """One bar: multiply-accumulates by the kernel that does them, integer kernels first."""
    groups: dict[tuple[str, bool], int] = {}
    for layer in report.layers:
        key = (short_kernel(layer), layer.integer)
        groups[key] = groups.get(key, 0) + layer.macs
    ranked = sorted(groups.items(), key=lambda item: (not item[0][1], -item[1]))
    shares = [
        (name, count, "ok" if integer else "float", max(0.45, 1 - 0.25 * index) if integer else 1.0)
        for index, ((name, integer), count) in enumerate(ranked)
    ]
    inside, own = report.attention_in_integers, report.attention
    kind = "bf16" if own is not None and own.precision == "bf16" else "float"
    rest = report.macs.of_quantizable - sum(groups.values())
    shares += [
        ("layers kept in float", rest, "float", 1.0),
        ("attention products, int8", inside, "ok", 0.6),
        (f"attention products, {kind}", report.macs.attention - inside, "none", 1.0),
    ]
    return share_bar(shares, report.macs.of_all)


def outputs_picture(report: Report) -> Drawn:
    """Bars by step: engine against simulation, and simulation against float."""
    steps = report.output_steps
    pitch, height, left = max(16, min(56, 960 // len(steps))), 170, 46
    top = max(120.0, *(s.engine_psnr_db for s in steps if s.engine_psnr_db < DECIBEL_LIMIT), 0.0)
    right = left + len(steps) * pitch
    lines, words, rects = [], [], []
    for level in range(0, int(top) + 1, 40):
        y = height - level / top * (height - 20)
        lines.append(Line(x1=left, x2=right, y=y))
        words.append(Word(x=left - 8, y=y + 4, text=f"{level} dB", anchor="end", colour="soft", small=True))
    bar = pitch * 0.36
    for i, step in enumerate(steps):
        x = left + i * pitch + pitch * 0.12
        values = [
            ("ok", step.engine_psnr_db, "engine against simulation"),
            ("sim", step.simulation_psnr_db, "simulation against float"),
        ]
        for j, (fill, value, what) in enumerate(values):
            if value is None:
                continue
            tall = max(0.0, min(value, top)) / top * (height - 20)
            title = f"step {step.bucket}: {what} {'equal' if value >= DECIBEL_LIMIT else f'{value:.1f} dB'}"
            rects.append(
                Rect(x=x + j * (bar + 1), y=height - tall, width=bar, height=tall, fill=fill, radius=2, title=title)
            )
        if i % every(30, pitch) == 0:
            text = f"{step.timestep:.0f}"
            words.append(Word(x=x + bar, y=height + 16, text=text, anchor="middle", colour="soft", small=True))
    words.append(Word(x=left, y=height + 36, text="timestep", colour="soft", small=True))
    picture = Picture(
        width=right + 10,
        height=height + 44,
        label="output error by step",
        rects=tuple(rects),
        words=tuple(words),
        lines=tuple(lines),
    )
    keys = [Key(fill="ok", text="engine against the simulation (a full bar: equal)")]
    if report.output_margin_db is not None:
        keys.append(Key(fill="sim", text="simulation against the float model"))
    return Drawn(picture=picture, keys=tuple(keys))
