"""The report of a plan: requested against executed type of each layer, as values and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dq_deploy.manifest.engine import stored_json
from dq_deploy.manifest.values import PlanManifest
from dq_deploy.verify.plan.attestation import PlanAttestation, PlanMacs
from dq_deploy.verify.report.values import FloatLayer
from dq_deploy.verify.steps import LeftOut


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Attestation of one plan.

    Attributes:
        engine: file name of the plan.
        manifest: of the plan.
        record_checked: whether a record was given, whose hash is then the plan's.
        attestation: what each layer became.
        comparison: why the plan was not run, or what running it showed.
        failures: what a proof that must be exact refuses.
        seconds: time taken.
        im2col_bytes: int8 patches that convolutions as products write for one sample.
        left_out: steps of the proof that were not done; not part of the JSON.
    """

    engine: str
    manifest: PlanManifest
    record_checked: bool
    attestation: PlanAttestation
    comparison: str
    failures: tuple[str, ...]
    seconds: float
    im2col_bytes: int
    left_out: tuple[LeftOut, ...] = ()

    @property
    def integer_mac_share(self) -> float:
        """Of all convolutions, linear layers and attention products; unknown is not integer."""
        return self.attestation.integer_mac_share

    @property
    def float_layers(self) -> tuple[FloatLayer, ...]:
        """Layers that are not integer, with the reason; those that were never quantized too."""
        rows = [
            FloatLayer(name=layer.name, macs=layer.macs, reason=f"{layer.executed}: {layer.why}")
            for layer in self.attestation.layers
            if layer.executed != "integer"
        ]
        known = {layer.name for layer in self.attestation.layers}
        rows += [
            FloatLayer(name=name, macs=count, reason="not quantized")
            for name, count in ({} if self.manifest.macs is None else self.manifest.macs.layers).items()
            if name not in known
        ]
        return tuple(rows)

    @property
    def macs(self) -> PlanMacs:
        """Of one sample."""
        return self.attestation.macs

    def to_json(self) -> dict[str, Any]:
        """JSON values; the attestation's names stand at the top level."""
        kept = ("target", "mode", "options", "record_sha256", "onnx_sha256", "plan_sha256", "runtime_version", "build",
                "profiles", "float_precision")  # fmt: skip
        stored = stored_json(self.manifest)
        return {
            "engine": self.engine,
            "exact": None,
            **{key: stored.get(key) for key in kept},
            **self.attestation.to_json(),
            "float_layers": [asdict(row) for row in self.float_layers],
            "record_checked": self.record_checked,
            "comparison": self.comparison,
            "im2col_bytes": self.im2col_bytes,
            "failures": list(self.failures),
            "seconds": self.seconds,
        }
