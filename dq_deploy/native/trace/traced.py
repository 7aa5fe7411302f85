"""The traced program of a record, from a process that has torch: this one if it loaded torch already, else a child.

A process that serves an engine then never loads torch: it stays small and starts its kernels at once.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dq_deploy.errors import DqError, MissingDependencyError, ModelError
from dq_deploy.native.program import program as programs
from dq_deploy.native.trace.geometry import Geometry, geometries
from dq_deploy.processes import (
    Handler,
    Tell,
    WorkerEndedError,
    WorkerError,
    WorkerProcess,
    WorkerTimeoutError,
    command_of,
    serve,
)
from dq_deploy.recent import Recent
from dq_deploy.record import Call, Record

TRACE_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """What the tracing process traces.

    Attributes:
        family: denoiser family.
        config: its diffusers configuration.
        call: its inputs, and the sizes to trace at.
        layers: quantized layers by module path.
        attentions: module paths of attentions that have quantizers.
    """

    family: str
    config: dict[str, Any]
    call: Call
    layers: dict[str, Geometry]
    attentions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Traced:
    """The joined program, as `programs.dumps` writes it."""

    program: str


def traced_program(record: Record, sizes: Mapping[str, int] | None = None, *, anew: bool = False) -> dict[str, Any]:
    """The joined program of a record's denoiser.

    Args:
        record: the quantized denoiser.
        sizes: of the axes that vary besides the batch, by name; a program is for one choice of them. Those left out
            are the record's own.
        anew: for a proof, which takes nothing from what it proves: programs kept for engines are not given, only those
            that another proof traced.

    Raises:
        ModelError: torch cannot trace it, or it holds an operation the native engine does not know.
        DqError: the tracing process died.
        MissingDependencyError: torch is not installed.
    """
    from dq_deploy.models import call_of_record

    layers, call = geometries(record.layers), call_of_record(record)
    call = replace(call, sizes={**call.sizes, **(sizes or {})})
    attentions = tuple(name for name, own in record.attention.items() if not own.why_not_int8)
    if "torch" in sys.modules:
        return joined_program(record.family, record.model_config, call, layers, attentions, anew=anew)
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            f"the program for the sizes {dict(call.sizes)} has to be traced, which needs torch; install it (a program "
            'file has the program for the record\'s own sizes: dq-export `target="native"`)'
        )
    request = TraceRequest(
        family=record.family, config=dict(record.model_config), call=call, layers=layers, attentions=attentions
    )
    try:
        process = WorkerProcess(command_of(__name__))
    except OSError as error:
        raise DqError(
            f"the process that traces the record's denoiser cannot start: {error.strerror}; is there enough memory?"
        ) from error
    with process:
        try:
            return programs.loads(process.ask(request, Traced, time_limit_s=TRACE_SECONDS).program)
        except WorkerTimeoutError as error:
            raise DqError(
                f"tracing took more than {TRACE_SECONDS} s, expected seconds; is the machine swapping?"
            ) from error
        except WorkerError as error:
            if error.failure.own_error is not None:
                raise ModelError(str(error)) from error
            raise DqError(_failed(error.failure.last_line)) from error
        except WorkerEndedError as error:
            raise DqError(_failed(error.ending.last_words)) from error


def _failed(words: str) -> str:
    return f"the process that traces the record's denoiser failed: {words:.200}; is there enough memory?"


def joined_program(
    family: str,
    config: Mapping[str, Any],
    call: Call,
    layers: Mapping[str, Geometry],
    attentions: tuple[str, ...] = (),
    *,
    anew: bool = False,
) -> dict[str, Any]:
    """Trace and lower at two batch sizes, and join them; needs torch. The last are kept, those of proofs apart."""
    text = json.dumps(dict(config), sort_keys=True, default=repr)
    key = (anew, family, text, repr(call), repr(layers), repr(attentions))
    return _PROGRAMS.get(key, lambda: _joined(family, config, call, layers, attentions))


_PROGRAMS: Recent[dict[str, Any]] = Recent(4)


def _joined(
    family: str,
    config: Mapping[str, Any],
    call: Call,
    layers: Mapping[str, Geometry],
    attentions: tuple[str, ...],
) -> dict[str, Any]:
    from dq_deploy.models import input_specs, output_specs
    from dq_deploy.native.lower import joined
    from dq_deploy.native.trace.graph import TracedGraph
    from dq_deploy.native.trace.tracing import trace

    names = [spec.name for spec in input_specs(call)]
    outputs = [spec.name for spec in output_specs(call)]

    def traced(batch: int) -> TracedGraph:
        return trace(family, config, call, layers, batch, attentions)

    return joined.joined_program(traced, layers, names, outputs)


def _trace(request: TraceRequest, _tell: Tell) -> Traced:
    joined = joined_program(request.family, request.config, request.call, request.layers, tuple(request.attentions))
    return Traced(program=programs.dumps(joined))


if __name__ == "__main__":
    serve(Handler(TraceRequest, _trace))
