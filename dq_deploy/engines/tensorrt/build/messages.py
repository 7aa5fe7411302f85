"""What the process that builds a plan is asked, tells and answers; see `dq_deploy.processes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What the process builds.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`.
        onnx: file to parse; its external data lies beside it.
        plan: file to write, a temporary name that the starter renames.
        compute_capabilities: as `8.9`; none is the library's default. For TensorRT what the GPU must be.
        profile: `min`, `opt` and `max` shape of each input.
        timing_cache: file to read and update, or None.
        workspace_mib: limit of the workspace pool, or None.
    """

    runtime: str
    onnx: str
    plan: str
    compute_capabilities: tuple[str, ...]
    profile: dict[str, dict[str, list[int]]]
    timing_cache: str | None
    workspace_mib: int | None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase in the library's words, and how many of its steps are done; `total` is 0 where it has none."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Built:
    """A plan that was written.

    Attributes:
        plan_sha256: of the file.
        plan_bytes: its size.
        runtime_version: of the library.
        compute_capabilities: of the GPUs it was built for, as far as they were named or seen.
        parse_seconds: reading the ONNX file.
        build_seconds: building.
        network_layers: of the network that was parsed.
        peak_mib: highest resident memory of the process.
    """

    plan_sha256: str
    plan_bytes: int
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    parse_seconds: float
    build_seconds: float
    network_layers: int
    peak_mib: float


@dataclass(frozen=True, kw_only=True)
class ParserError:
    """An error of the library's ONNX parser: its code, its words, and the node it names."""

    code: str
    message: str
    index: int
    node: str
    operator: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the library builds no plan.

    Attributes:
        kind: what refuses: the `parser`, the `builder`, its start (`no_builder`), the `capability` of the GPU, or the
            names of the `inputs`.
        message: in words, where there are some.
        log: last errors of the library.
        errors: of the parser.
        found: names of the inputs, or the compute capability of the GPU; empty where there is none.
        expected: likewise what was asked for.
    """

    kind: Literal["parser", "builder", "no_builder", "capability", "inputs"]
    message: str = ""
    log: tuple[str, ...] = ()
    errors: tuple[ParserError, ...] = ()
    found: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BuildAnswer:
    """Either the plan or a refusal."""

    built: Built | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """What a builder is doing.

    Attributes:
        phase: in the library's words.
        done: steps of this phase.
        total: of so many; 0 where it has none.
        seconds: since the start.
        peak_mib: memory so far.
    """

    phase: str
    done: int
    total: int
    seconds: float
    peak_mib: float | None
