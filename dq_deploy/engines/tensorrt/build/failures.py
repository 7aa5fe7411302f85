"""One line for each way a build can end badly: what happened, where, and what to change."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_deploy.engines.tensorrt.build.intake import find_node, steps_at_scales
from dq_deploy.errors import BuildError, DqError, FileProblemError, MissingDependencyError, OptionError
from dq_deploy.manifest.values import EngineManifest

_ONLY_ONNX_RUNTIME = ("Integer", "QLinear", "com.microsoft", "DynamicQuantize")
_NO_MEMORY = re.compile(r"bad_alloc|out ?of ?memory|cannot allocate memory|MEM_ALLOC_FAILED", re.IGNORECASE)
_LESS_MEMORY = (
    "close other programs, build on a machine with more memory, or build for fewer compute capabilities and "
    "smaller `shapes`"
)
_OLD_GPU = "for target(s) sm75"
_NODES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a builder process ended.

    Attributes:
        onnx: file it built from.
        manifest: of that file.
        runtime: `tensorrt` or `tensorrt-rtx`.
        code: exit code; negative is the signal that ended it.
        event: its last word, where it had one.
        log: last lines of what the library said.
        phase: what it was doing.
        seconds: since its start.
        peak_mib: highest memory seen.
    """

    onnx: Path
    manifest: EngineManifest
    runtime: str
    code: int
    event: Mapping[str, Any] | None
    log: Sequence[str]
    phase: str
    seconds: float
    peak_mib: float | None

    @property
    def where(self) -> str:
        """Phase and time, for the middle of a sentence."""
        return f"in phase '{self.phase}' after {self.seconds:.0f} s"

    @property
    def peak(self) -> str:
        """The memory peak as words."""
        return "an unknown peak" if self.peak_mib is None else f"a peak of {self.peak_mib:.0f} MiB"


def time_limit_error(ending: Ending, limit_s: float) -> DqError:
    """The build was stopped at its time limit."""
    return BuildError(
        f"the build of {ending.onnx} was stopped at its limit of {limit_s:g} s {ending.where}, {ending.peak}; "
        "give a larger `time_limit_s`, fewer compute capabilities or smaller `shapes`"
    )


def error_of(ending: Ending) -> Exception:
    """What to raise for a process that did not finish; an OSError where the plan could not be written."""
    if ending.event is not None and ending.event.get("event") == "error":
        return _told(ending, ending.event)
    if any(_NO_MEMORY.search(line) for line in ending.log[-20:]):
        return _memory(ending)
    if ending.code == -signal.SIGKILL:
        return BuildError(
            f"the builder of {ending.onnx} was killed {ending.where}, most likely because memory ran out, at "
            f"{ending.peak}; {_LESS_MEMORY}"
        )
    if ending.code < 0:
        return _crash(ending, signal.Signals(-ending.code).name)
    last = ending.log[-1] if ending.log else "it said nothing"
    return BuildError(
        f"the builder of {ending.onnx} ended with code {ending.code} {ending.where}: {last}; run dq-build again with "
        "`log` FILE for all it said"
    )


def _told(ending: Ending, event: Mapping[str, Any]) -> Exception:
    kind = str(event["kind"])
    if kind == "write":
        return OSError(event["errno"], event["message"])
    if kind == "memory" or any(_NO_MEMORY.search(str(line)) for line in event.get("log", ())):
        return _memory(ending)
    if kind == "dependency":
        return MissingDependencyError(str(event["message"]))
    if kind == "parser":
        return _refusal(ending, event["errors"])
    if kind == "inputs":
        found, expected = ", ".join(event["found"]) or "none", ", ".join(event["expected"])
        return FileProblemError(f"{ending.onnx} has inputs {found}, its manifest says {expected}; export it again")
    if kind == "no_builder":
        reason = "; ".join(event.get("log", ())) or event["message"]
        return BuildError(
            f"TensorRT cannot start its builder here ({reason}); it needs an NVIDIA GPU with a driver that is new "
            'enough: build on the machine that will run the plan, or use `runtime="tensorrt-rtx"`, which needs none'
        )
    if kind == "capability":
        return _capability(ending, event)
    lines = [str(line) for line in event.get("log", ())]
    if any(_OLD_GPU in line for line in lines):
        return BuildError(
            f"{ending.runtime} cannot build {ending.onnx} for compute capability 7.5, which has no type of its: "
            f"{lines[-1]}; leave 7.5 out of `compute_capabilities`, or export 8-bit weights"
        )
    return BuildError(
        f"{ending.runtime} could not build {ending.onnx} {ending.where}: {'; '.join(lines) or 'it gives no reason'}"
        f"{_layers_in(ending, lines)}; {_change(ending)}"
    )


def _capability(ending: Ending, event: Mapping[str, Any]) -> DqError:
    if event["found"] is None:
        return OptionError(
            f"`compute_capabilities` {event['wanted']} is refused by the installed TensorRT-RTX; leave it out"
        )
    return OptionError(
        f"`compute_capabilities` got {event['wanted']}, the GPU of this machine has {event['found']}, and TensorRT "
        'builds for the GPU it runs on; build on the other machine, or use `runtime="tensorrt-rtx"`'
    )


def _memory(ending: Ending) -> DqError:
    return BuildError(
        f"the builder of {ending.onnx} ran out of memory {ending.where}, at {ending.peak}; {_LESS_MEMORY}"
    )


def _crash(ending: Ending, name: str) -> DqError:
    suspects = steps_at_scales(ending.onnx, ending.manifest)
    if suspects:
        names = list(dict.fromkeys(node.layer or node.name for node in suspects))
        named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return BuildError(
            f"the builder of {ending.onnx} crashed with {name} {ending.where}; likely at {named}, whose "
            "quantizer has a scale computed in the graph: export the record again with dq-export "
            f'`target="{ending.runtime}"`, which keeps those scales constant'
        )
    return BuildError(
        f"the builder of {ending.onnx} crashed with {name} {ending.where}{_layers_in(ending, ending.log)}; "
        f"{_change(ending)}"
    )


def _layers_in(ending: Ending, lines: Sequence[str]) -> str:
    """The nodes the library named last."""
    for line in reversed(lines):
        names = _NODES.findall(line)
        if names:
            shown = names if len(names) <= 3 else [names[0], "...", names[-1]]
            facts = find_node(ending.onnx, ending.manifest, name=names[-1], index=-1)
            layer = f" (layer {facts.layer})" if facts is not None and facts.layer else ""
            return f"; it was working on {len(names)} nodes: {' '.join(shown)}{layer}"
    return ""


def _refusal(ending: Ending, errors: Sequence[Mapping[str, Any]]) -> DqError:
    if not errors:
        return FileProblemError(f"the parser of {ending.runtime} refuses {ending.onnx} and gives no reason")
    first = errors[0]
    facts = find_node(ending.onnx, ending.manifest, name=str(first["node"]), index=int(first["index"]))
    message = str(first["message"]).strip()
    reason = f"{first['code']}" + (f": {message}" if message not in ("", "false") else "")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if facts is None:
        return FileProblemError(
            f"the parser of {ending.runtime} refuses {ending.onnx}: {reason}{more}; export it again with dq-export "
            f'`target="{ending.runtime}"`'
        )
    layer = f" of layer {facts.layer}" if facts.layer else ""
    if any(word in facts.operator for word in _ONLY_ONNX_RUNTIME):
        change = "this is one of ONNX Runtime's integer operators"
    else:
        change = "the operator is not one this version takes"
    return BuildError(
        f"the parser of {ending.runtime} refuses node {facts.name}{layer}, operator {facts.operator} of opset "
        f"{facts.opset}: {reason}{more}; {change}: export the record again with dq-export "
        f'`target="{ending.runtime}"`'
        + (f", or keep {facts.layer} float with dq-quantize `keep`" if facts.layer else "")
    )


def _change(ending: Ending) -> str:
    if ending.runtime == "tensorrt-rtx":
        return (
            "try another `conv` or `float_type` of dq-export, fixed `shapes`, or one `compute_capabilities`; "
            "`log` FILE keeps all the builder said"
        )
    return "try another `float_type` of dq-export or fixed `shapes`; `log` FILE keeps all the builder said"
