"""The traced program of a record, from a process that has torch: this one if it loaded torch already, else a child.

A process that serves an engine then never loads torch: it stays small and starts its kernels at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import DqError, ModelError
from dq_deploy.models.sizes import EXAMPLE_SIZES
from dq_deploy.native.program import program as programs
from dq_deploy.native.trace.geometry import Geometry, from_json, geometries
from dq_deploy.record import Record

TRACE_SECONDS = 600


def traced_program(record: Record, sizes: Mapping[str, int] = EXAMPLE_SIZES) -> dict[str, Any]:
    """The joined program of a record's denoiser.

    Args:
        record: the quantized denoiser.
        sizes: of the axes that vary besides the batch, by name; a program is for one choice of them.

    Raises:
        ModelError: torch cannot trace it, or it holds an operation the native engine does not know.
        DqError: the tracing process died.
    """
    layers = geometries(record)
    if "torch" in sys.modules:
        return joined_program(record.family, record.model_config, layers, sizes)
    request = {
        "family": record.family,
        "config": dict(record.model_config),
        "sizes": dict(sizes),
        "layers": {name: layer.to_json() for name, layer in layers.items()},
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dq_deploy.native.trace.traced"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TRACE_SECONDS,
            check=False,
        )
    except OSError as error:
        raise DqError(
            f"the process that traces the record's denoiser cannot start: {error.strerror}; is there enough memory?"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DqError(
            f"tracing took more than {TRACE_SECONDS} s, expected seconds; is the machine swapping?"
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        if last.startswith("error: "):
            raise ModelError(last.removeprefix("error: "))
        raise DqError(f"the process that traces the record's denoiser failed: {last:.200}; is there enough memory?")
    return programs.loads(done.stdout)


def joined_program(
    family: str, config: Mapping[str, Any], layers: Mapping[str, Geometry], sizes: Mapping[str, int] = EXAMPLE_SIZES
) -> dict[str, Any]:
    """Trace and lower at two batch sizes, and join them; needs torch."""
    from dq_deploy.models import input_specs, output_specs
    from dq_deploy.native.lower.lowering import Lowering
    from dq_deploy.native.trace.tracing import trace

    names = [spec.name for spec in input_specs(config)]
    output = output_specs(config)[0].name
    found = []
    for batch in programs.TRACED_BATCHES:
        graph, keys = trace(family, config, layers, batch, sizes)
        found.append(programs.to_json(Lowering(graph, keys, layers).program(names, output)))
    joined: dict[str, Any] = programs.join_batches(*found)
    return joined


def main() -> None:
    """Entry of the tracing process: a request on stdin, the program on stdout."""
    request = json.load(sys.stdin)
    layers = {name: from_json(value) for name, value in request["layers"].items()}
    try:
        print(programs.dumps(joined_program(request["family"], request["config"], layers, request["sizes"])))
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
