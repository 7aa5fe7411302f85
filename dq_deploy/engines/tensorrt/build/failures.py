"""One line for each way a build can end badly: what happened, where, and what to change."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_deploy.engines.tensorrt.build.intake import find_node, steps_at_scales
from dq_deploy.engines.tensorrt.build.messages import ParserError, Refusal
from dq_deploy.errors import BuildError, DqError, FileProblemError, OptionError
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.processes import Ending, Failure

_ONLY_ONNX_RUNTIME = ("Integer", "QLinear", "com.microsoft", "DynamicQuantize")
_NO_MEMORY = re.compile(r"bad_alloc|out ?of ?memory|cannot allocate memory|MEM_ALLOC_FAILED", re.IGNORECASE)
_LESS_MEMORY = (
    "close other programs, build on a machine with more memory, or build for fewer compute capabilities and "
    "smaller `shapes`"
)
_OLD_GPU = "for target(s) sm75"
_NODES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True, kw_only=True)
class Build:
    """A build that did not end well.

    Attributes:
        onnx: file it built from.
        manifest: of that file.
        runtime: `tensorrt` or `tensorrt-rtx`.
        phase: what it was doing.
        seconds: since its start.
        peak_mib: highest memory seen.
    """

    onnx: Path
    manifest: EngineManifest
    runtime: str
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


def time_limit_error(build: Build, limit_s: float) -> DqError:
    """The build was stopped at its time limit."""
    return BuildError(
        f"the build of {build.onnx} was stopped at its limit of {limit_s:g} s {build.where}, {build.peak}; "
        "give a larger `time_limit_s`, fewer compute capabilities or smaller `shapes`"
    )


def unfinished_error(build: Build, ending: Ending) -> DqError:
    """What to raise for a process that gave no answer."""
    if any(_NO_MEMORY.search(line) for line in ending.log[-20:]):
        return _memory(build)
    if ending.code == -signal.SIGKILL:
        return BuildError(
            f"the builder of {build.onnx} was killed {build.where}, most likely because memory ran out, at "
            f"{build.peak}; {_LESS_MEMORY}"
        )
    if ending.signal_name is not None:
        return _crash(build, ending.signal_name, ending.log)
    last = ending.log[-1] if ending.log else "it said nothing"
    return BuildError(
        f"the builder of {build.onnx} ended with code {ending.code} {build.where}: {last}; run dq-build again with "
        "`log` FILE for all it said"
    )


def failure_error(build: Build, failure: Failure) -> Exception:
    """What to raise for an exception of the process: an OSError where the plan could not be written."""
    if failure.kind == "MemoryError":
        return _memory(build)
    if failure.errno is not None:
        return OSError(failure.errno, os.strerror(failure.errno))
    return failure.own_error or BuildError(
        f"the builder of {build.onnx} failed {build.where}: {failure.message}; run dq-build again with `log` FILE for "
        "all it said"
    )


def refusal_error(build: Build, refusal: Refusal) -> DqError:
    """What to raise where the library refuses."""
    if any(_NO_MEMORY.search(line) for line in refusal.log):
        return _memory(build)
    if refusal.kind == "parser":
        return _parser(build, refusal.errors)
    if refusal.kind == "inputs":
        found, expected = ", ".join(refusal.found) or "none", ", ".join(refusal.expected)
        return FileProblemError(f"{build.onnx} has inputs {found}, its manifest says {expected}; export it again")
    if refusal.kind == "no_builder":
        reason = "; ".join(refusal.log) or refusal.message
        return BuildError(
            f"TensorRT cannot start its builder here ({reason}); it needs an NVIDIA GPU with a driver that is new "
            'enough: build on the machine that will run the plan, or use `runtime="tensorrt-rtx"`, which needs none'
        )
    if refusal.kind == "capability":
        return _capability(refusal)
    lines = refusal.log
    if any(_OLD_GPU in line for line in lines):
        return BuildError(
            f"{build.runtime} cannot build {build.onnx} for compute capability 7.5, which has no type of its: "
            f"{lines[-1]}; leave 7.5 out of `compute_capabilities`, or export 8-bit weights"
        )
    return BuildError(
        f"{build.runtime} could not build {build.onnx} {build.where}: {'; '.join(lines) or 'it gives no reason'}"
        f"{_layers_in(build, lines)}; {_change(build)}"
    )


def _capability(refusal: Refusal) -> DqError:
    wanted = ", ".join(refusal.expected)
    if not refusal.found:
        return OptionError(f"`compute_capabilities` {wanted} is refused by the installed TensorRT-RTX; leave it out")
    return OptionError(
        f"`compute_capabilities` got {wanted}, the GPU of this machine has {refusal.found[0]}, and TensorRT "
        'builds for the GPU it runs on; build on the other machine, or use `runtime="tensorrt-rtx"`'
    )


def _memory(build: Build) -> DqError:
    return BuildError(
        f"the builder of {build.onnx} ran out of memory {build.where}, at {build.peak}; {_LESS_MEMORY}"
    )


def _crash(build: Build, name: str, log: Sequence[str]) -> DqError:
    suspects = steps_at_scales(build.onnx, build.manifest)
    if suspects:
        names = list(dict.fromkeys(node.layer or node.name for node in suspects))
        named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return BuildError(
            f"the builder of {build.onnx} crashed with {name} {build.where}; likely at {named}, whose "
            "quantizer has a scale computed in the graph: export the record again with dq-export "
            f'`target="{build.runtime}"`, which keeps those scales constant'
        )
    return BuildError(
        f"the builder of {build.onnx} crashed with {name} {build.where}{_layers_in(build, log)}; "
        f"{_change(build)}"
    )


def _layers_in(build: Build, lines: Sequence[str]) -> str:
    """The nodes the library named last."""
    for line in reversed(lines):
        names = _NODES.findall(line)
        if names:
            shown = names if len(names) <= 3 else [names[0], "...", names[-1]]
            facts = find_node(build.onnx, build.manifest, name=names[-1], index=-1)
            layer = f" (layer {facts.layer})" if facts is not None and facts.layer else ""
            return f"; it was working on {len(names)} nodes: {' '.join(shown)}{layer}"
    return ""


def _parser(build: Build, errors: Sequence[ParserError]) -> DqError:
    if not errors:
        return FileProblemError(f"the parser of {build.runtime} refuses {build.onnx} and gives no reason")
    first = errors[0]
    facts = find_node(build.onnx, build.manifest, name=first.node, index=first.index)
    message = first.message.strip()
    reason = first.code + (f": {message}" if message not in ("", "false") else "")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if facts is None:
        return FileProblemError(
            f"the parser of {build.runtime} refuses {build.onnx}: {reason}{more}; export it again with dq-export "
            f'`target="{build.runtime}"`'
        )
    layer = f" of layer {facts.layer}" if facts.layer else ""
    if any(word in facts.operator for word in _ONLY_ONNX_RUNTIME):
        change = "this is one of ONNX Runtime's integer operators"
    else:
        change = "the operator is not one this version takes"
    return BuildError(
        f"the parser of {build.runtime} refuses node {facts.name}{layer}, operator {facts.operator} of opset "
        f"{facts.opset}: {reason}{more}; {change}: export the record again with dq-export "
        f'`target="{build.runtime}"`'
        + (f", or keep {facts.layer} float with dq-quantize `keep`" if facts.layer else "")
    )


def _change(build: Build) -> str:
    if build.runtime == "tensorrt-rtx":
        return (
            "try another `conv` or `float_type` of dq-export, fixed `shapes`, or one `compute_capabilities`; "
            "`log` FILE keeps all the builder said"
        )
    return "try another `float_type` of dq-export or fixed `shapes`; `log` FILE keeps all the builder said"
