"""What each layer of a plan became, as the plan itself or the engine inspector tells it; unknown is never passed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.engines.tensorrt.plan.inspector import read_inspector
from dq_deploy.engines.tensorrt.plan.products import Kernel, PlanText, Product
from dq_deploy.engines.tensorrt.plan.text import read_plan_text
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.values import LayerBuilt, PlanManifest
from dq_deploy.verify.plan.kernels import StandingAlone, kernel_counts, standing_alone
from dq_deploy.verify.plan.matching import Matching, Verdict, wanted_products, worst


@dataclass(frozen=True, kw_only=True)
class LayerAttestation:
    """One layer of the manifest.

    Attributes:
        name: module path.
        requested: `integer` or `float`: what the exporter wrote.
        executed: `integer`, `float` or `unknown`.
        operands: element types of its products, as `int8 x int8`.
        macs: multiply-accumulates of one sample.
        why: reason where it is not integer.
    """

    name: str
    requested: str
    executed: str
    operands: tuple[str, ...]
    macs: int
    why: str


@dataclass(frozen=True, kw_only=True)
class PlanMacs:
    """Multiply-accumulates of one sample.

    Attributes:
        of_all: every convolution, linear layer and attention product.
        of_quantizable: of convolutions and linear layers.
        attention: of attention's products.
        integer: of layers whose products are known to take two integer operands.
        unknown: of layers whose products are not known.
    """

    of_all: int
    of_quantizable: int
    attention: int
    integer: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class PlanAttestation:
    """What a plan tells; `to_json` has these names.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`.
        version: of the builder, as the plan has it.
        compute_capabilities: each of them is counted, the worst decides.
        problem: why the plan tells nothing; empty where it was read.
        layers: one by one, in the manifest's order.
        integer_mac_share: of all convolutions, linear layers and attention products.
        integer_mac_share_of_quantizable: of convolutions and linear layers.
        macs: of one sample.
        kernels: number of `products`, of `integer_products` and of the other kernels by what they do.
        unfused: kernels with nothing but what the exporter added for layers.
    """

    runtime: str
    version: str
    compute_capabilities: tuple[str, ...]
    problem: str
    layers: tuple[LayerAttestation, ...]
    integer_mac_share: float
    integer_mac_share_of_quantizable: float
    macs: PlanMacs
    kernels: dict[str, int]
    unfused: tuple[StandingAlone, ...]

    @property
    def not_integer(self) -> tuple[str, ...]:
        """Names of the layers that are float or unknown."""
        return tuple(layer.name for layer in self.layers if layer.executed != "integer")

    def layers_built(self) -> tuple[LayerBuilt, ...]:
        """The layers as the manifest of a plan has them."""
        return tuple(LayerBuilt(**vars(layer)) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        value = asdict(self)
        for row in value["layers"]:
            row["operands"] = list(row["operands"])
        for row in value["unfused"]:
            row["nodes"] = list(row["nodes"])
        return {**value, "layers": list(value["layers"]), "unfused": list(value["unfused"])}


def attest_plan(plan_path: str | Path, manifest: PlanManifest) -> PlanAttestation:
    """Say what each layer of a plan became, without running it.

    TensorRT-RTX: from the text in the plan. TensorRT: from the engine inspector's JSON, `<plan>.layers.json` where it
    is there, else by loading the engine, which needs its GPU. Where neither can be read, every layer is unknown.

    Args:
        plan_path: the plan.
        manifest: its manifest, with or without `layers_built`.

    Returns:
        One verdict a layer, and the integer share of the MACs.

    Raises:
        FileProblemError: the plan is missing, or the manifest is incomplete.
    """
    path = Path(plan_path)
    if not path.is_file():
        raise FileProblemError(f"plan {path} does not exist; expected a file made by dq-build")
    if manifest.macs is None:
        raise _incomplete(path, "macs is missing")
    for index, entry in enumerate(manifest.layers):
        if entry.parts is None:
            raise _incomplete(path, f"layers[{index}].parts is missing")
        for number, part in enumerate(entry.parts):
            for size in () if part.product is None else part.product.missing():
                raise _incomplete(path, f"layers[{index}].parts[{number}].product.{size} is missing")
        if entry.name not in manifest.macs.layers:
            raise _incomplete(path, f"macs.layers.{entry.name} is missing")
    told = _evidence(path, manifest)
    wanted = [want for entry in manifest.layers for want in wanted_products(entry)]
    try:
        found = _verdicts(told, manifest, wanted)
    except ValueError as error:  # sizes of another number than the plan has
        raise _incomplete(path, str(error)) from error
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for want, verdict in zip(wanted, found, strict=True):
        verdicts[want.layer].append(verdict)
    rows = []
    for entry in manifest.layers:
        requested = "integer" if entry.integer else "float"
        verdict = worst(verdicts[entry.name])
        why = verdict.why
        if requested == "float" and verdict.executed == "float":
            why = entry.reason or verdict.why
        row = LayerAttestation(
            name=entry.name,
            requested=requested,
            executed=verdict.executed,
            operands=verdict.operands,
            macs=manifest.macs.layers[entry.name],
            why=why,
        )
        rows.append(row)
    sums = {kind: sum(row.macs for row in rows if row.executed == kind) for kind in ("integer", "unknown")}
    totals = {
        "of_all": manifest.macs.of_all,
        "of_quantizable": manifest.macs.of_quantizable,
        "attention": manifest.macs.attention,
    }
    return PlanAttestation(
        runtime=manifest.runtime,
        version=told.version,
        compute_capabilities=manifest.compute_capabilities,
        problem=told.problem,
        layers=tuple(rows),
        integer_mac_share=_share(sums["integer"], totals["of_all"]),
        integer_mac_share_of_quantizable=_share(sums["integer"], totals["of_quantizable"]),
        macs=PlanMacs(**totals, **sums),
        kernels=kernel_counts(told),
        unfused=tuple(standing_alone(told.kernels)),
    )


def _incomplete(path: Path, flaw: str) -> FileProblemError:
    return FileProblemError(f"the manifest of {path} is incomplete ({flaw}); build the plan again")


def _share(some: int, whole: int) -> float:
    return some / whole if whole else 0.0


def _evidence(path: Path, manifest: PlanManifest) -> PlanText:
    """What the plan says, or an account whose problem makes every layer unknown."""
    runtime, built_by = manifest.runtime, manifest.runtime_version
    if sha256_of_file(path) != manifest.plan_sha256:
        return PlanText(version="", problem="the manifest belongs to another plan: the SHA-256 differs")
    if runtime == "tensorrt-rtx":
        told = read_plan_text(path)
    elif runtime == "tensorrt":
        told = read_inspector(path)
    else:
        return PlanText(version="", problem=f"plans of {runtime} cannot be read")
    if not told.problem and told.version and built_by != told.version:
        problem = f"the manifest says {runtime} {built_by}, the plan {told.version}"
        return PlanText(version=told.version, problem=problem)
    return told


def _verdicts(told: PlanText, manifest: PlanManifest, wanted: Sequence[Any]) -> list[Verdict]:
    """The worst verdict over all GPU architectures the plan is for."""
    if told.problem:
        return [Verdict(executed="unknown", operands=(), why=told.problem)] * len(wanted)
    by_architecture = []
    for name in _architectures(told, manifest):
        products = [p for p in told.products if _runs_on(p, name)]
        if name and not products and name not in told.accelerators:
            why = f"the plan holds no program for compute capability {name[2:-1]}.{name[-1]}"
            by_architecture.append([Verdict(executed="unknown", operands=(), why=why)] * len(wanted))
            continue
        matching = Matching(
            wanted=wanted,
            products=products,
            kernels=[k for k in told.kernels if _runs_on(k, name)],
            batch=fixed_batch(manifest),
            copies=max(1, len(manifest.profiles)),
        )
        by_architecture.append(matching.verdicts())
    return [worst(column) for column in zip(*by_architecture, strict=True)]


def _architectures(told: PlanText, manifest: PlanManifest) -> list[str]:
    """`sm80` and so on; one empty name where the evidence does not tell architectures apart.

    A portable plan says `sm80` for 8.0 and all that came later; there the plan's own list is what can be counted.
    """
    if not told.accelerators:
        return [""]
    if manifest.portable:
        return list(told.accelerators)
    named = [f"sm{capability.replace('.', '')}" for capability in manifest.compute_capabilities]
    return list(dict.fromkeys([*named, *told.accelerators]))


def _runs_on(item: Product | Kernel, name: str) -> bool:
    return not name or not item.accelerators or name in item.accelerators


def fixed_batch(manifest: PlanManifest) -> int | None:
    """The batch of a plan whose profiles allow one only, else None."""
    if not manifest.inputs:
        return None
    first = manifest.inputs[0]
    ranges = [profile[first.name] for profile in manifest.profiles if first.name in profile]
    shapes: list[tuple[int | str, ...]] = [shape for sizes in ranges for shape in (sizes.min, sizes.opt, sizes.max)]
    sizes = {shape[0] if shape else None for shape in shapes or [first.shape]}
    (size,) = sizes if len(sizes) == 1 else (None,)
    return size if isinstance(size, int) else None
