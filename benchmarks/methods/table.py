"""The methods table as Markdown, from the lines that were measured; what was not is `not run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.machine.quiet import TOO_BUSY
from benchmarks.methods.cells import BITS, METHODS, MODELS, PEERS, Line, Spec, Terms, all_specs
from benchmarks.methods.claims import NOT_RUN, all_claims
from benchmarks.methods.seeds import BySeed, lines_by_seed, over_seeds
from dq_deploy.comparison import markdown, paired_psnr, row_of_cell
from dq_deploy.comparison.table import Row, interval_text

ABLATION_BITS = "W4A4"
PEER_BITS = "W8A8"


def row(spec: Spec, line: Line | None, whole: Line | None = None) -> Row:
    """One row; of an ablation with the difference to the whole method."""
    name = spec.method + (f" without {spec.without}" if spec.without else "")
    if line is None:
        return {"method": name, "bits": spec.bits, "error": NOT_RUN}
    if spec.method in PEERS and "layers" in line.cell.options:
        name += f" ({line.cell.options['layers']} layers)"
    found = {**row_of_cell(line.cell), "method": name}
    if "error" in found:
        return found
    if whole is not None and whole.cell.error is None:
        difference = None if whole is line else paired_psnr(line.cell, whole.cell)
        found["PSNR less whole method's, dB"] = interval_text(None if difference is None else vars(difference))
    return {**found, "commit": str(line.facts["commit"])}


def section(title: str, rows: list[Row]) -> str:
    """A heading and a table, or one line where nothing of it was run."""
    if all(entry.get("error") == NOT_RUN for entry in rows):
        return f"### {title}\n\n{', '.join(entry['method'] for entry in rows)}: not run.\n"
    text = markdown(rows).replace(f"| failed: {NOT_RUN} |", f"| {NOT_RUN} |")
    return f"### {title}\n\n{text}"


def ablations(lines: Mapping[str, Line]) -> str:
    """Every method with its parts left out one by one."""
    rows = []
    for method in METHODS:
        own = [spec for spec in all_specs() if spec.group == "ablations" and spec.method == method]
        whole = Spec("digits", method, ABLATION_BITS)
        shown = [whole, *own] if own else []
        rows += [row(spec, lines.get(spec.name), lines.get(whole.name)) for spec in shown]
    return section(f"digits, {ABLATION_BITS}, each part of a method left out", rows)


def claims(lines: Mapping[str, Line], seeds: Mapping[str, BySeed]) -> str:
    """What was expected and what became of it."""
    text = ["### What was expected\n"]
    for claim in all_claims(lines, seeds):
        text.append(f"- **{claim.text}: {claim.verdict}.**")
        if not all(finding.verdict == NOT_RUN for finding in claim.findings):
            text += [f"  - {finding}" for finding in claim.findings]
    return "\n".join(text) + "\n"


def conditions(lines: Mapping[str, Line], terms: Terms) -> str:
    """How the numbers came about: what all share, and each machine."""
    text = (
        f"Preset `{terms.preset}`, seed {terms.seed}, {terms.count} images at {terms.steps} DDIM steps (eta 0) from "
        "the same noise, which no calibration saw; all methods on the same calibration samples; images by the native "
        "engine. PSNR is to the float model's image, the mean over images with its 95 % bootstrap interval; "
        "differences are paired. *real against real* is the least that a distance to real images can be expected to "
        "be. Memory is the highest of the method's process, interpreter and libraries included; a step is timed at "
        "batch 1, in turns with the float graph on ONNX Runtime. Other packages are given the samples that our "
        "times include the drawing of, keep the layers float that ours keep float by default (time embedding, "
        "attention's products), and take turns with the float model on their own engine, so only their milliseconds "
        "stand beside ours, not their ratios.\n\n"
        "An interval of one training seed is over images alone. It tells records apart, not methods, nor a method "
        "with and without a part: training follows the last bit of every sum, and another seed gives another record. "
        "What a method is worth is told by the sections of several seeds.\n"
    )
    found = sorted({_machine(line) for line in lines.values()})
    busy = [spec for spec, line in lines.items() if float(line.facts.get("others_busy") or 0) > TOO_BUSY]
    if found:
        text += f"\nMeasured on: {'; '.join(found)}.\n"
    if busy:
        text += f"\nOther work kept the machine busy, so times are too long: {', '.join(sorted(busy))}.\n"
    return text


def _machine(line: Line) -> str:
    environment = line.facts["environment"]
    threads, cores = environment["threads"], environment.get("usable_cores")
    held = f" held to {cores} of {environment['logical_cores']} cores" if cores else ""
    return f"{environment['cpu']}, {threads} thread{'s' * (threads != 1)}{held}, {environment['date'][:10]}"


def table(lines: Mapping[str, Line], terms: Terms, every: Sequence[Line] = ()) -> str:
    """The whole document; `every` line, also of other seeds, for the intervals over seeds."""
    pieces = ["## Methods\n", conditions(lines, terms)]
    for model in MODELS:
        for bits in BITS:
            specs = [Spec(model, method, bits) for method in METHODS]
            pieces.append(section(f"{model}, {bits}", [row(spec, lines.get(spec.name)) for spec in specs]))
    pieces += [text for text in (over_seeds(every, terms),) if text]
    pieces.append(ablations(lines))
    peers = [Spec("digits", peer, PEER_BITS) for peer in PEERS]
    title = f"digits, {PEER_BITS}, other packages, each with its own engine"
    pieces.append(section(title, [row(spec, lines.get(spec.name)) for spec in peers]))
    notes = [f"- {name}: {note}" for name, line in lines.items() for note in line.cell.notes]
    if notes:
        pieces.append("### Notes\n\n" + "\n".join(notes) + "\n")
    return "\n".join([*pieces, claims(lines, lines_by_seed(every, terms))])
