"""The proof of a TensorRT plan: what can be told without a GPU, and its outputs where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.plan import is_plan, read_plan_manifest
from dq_deploy.record import content_sha256
from dq_deploy.verify.inputs import Runs
from dq_deploy.verify.layers.comparison import LayerResults
from dq_deploy.verify.output.float_path import FloatPath
from dq_deploy.verify.output.outputs import Outputs
from dq_deploy.verify.plan.attestation import PlanAttestation, attest_plan
from dq_deploy.verify.plan.report import PlanReport
from dq_deploy.verify.prover import Evidence, Prover, Seen, Subject
from dq_deploy.verify.steps import LeftOut, Reason, Step

CODES_UNREAD = "codes and accumulators inside a plan cannot be read"


class PlanProver(Prover[PlanAttestation, PlanReport]):
    """Reads what each layer of a plan became; nothing inside a plan can be read while it runs."""

    @classmethod
    def takes(cls, path: Path) -> bool:
        """A plan."""
        return is_plan(path)

    def __init__(self, subject: Subject) -> None:
        """Read the manifest.

        Raises:
            FileProblemError: missing or foreign files, or a plan that was not made from this record.
        """
        super().__init__(subject)
        path, record = subject.path, subject.record
        self.manifest = read_plan_manifest(path)
        if record is not None:
            expected = content_sha256(record)
            if self.manifest.record_sha256 != expected:
                raise FileProblemError(
                    f"{path} was made from another record: {str(self.manifest.record_sha256)[:12]}, expected "
                    f"{expected[:12]}; build it again with dq-build"
                )

    def compare_file(self) -> LeftOut:
        """Not done: a builder's bytes cannot be made again; the hash in the manifest is checked."""
        return LeftOut(
            step=Step.FILE,
            reason=Reason.NOT_READABLE,
            text="a plan cannot be made again byte for byte; its hash was compared with its manifest's",
        )

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """Read what each layer became; no engine is opened."""
        self.subject.options.progress("reading the plan")
        self._attestation = attest_plan(self.subject.path, self.manifest)
        yield

    def run(self) -> LeftOut:
        """Not done: a plan has no tensors of its layers to be read."""
        return LeftOut(step=Step.LAYERS, reason=Reason.NOT_READABLE, text=CODES_UNREAD)

    def compare_layers(self, runs: Runs) -> LayerResults:
        """Never called: there are no runs.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(CODES_UNREAD)

    def probe_layers(self, seen: Seen) -> LeftOut:
        """Not done: no piece of a plan runs by itself."""
        return LeftOut(step=Step.PROBE, reason=Reason.NOT_READABLE, text=CODES_UNREAD)

    def replay_float_operations(self, seen: Seen) -> FloatPath | LeftOut:
        """Not done: a plan shows no layer's output."""
        return LeftOut(step=Step.FLOAT_OPERATIONS, reason=Reason.NOT_READABLE, text=CODES_UNREAD)

    def attest_kernels(self, seen: Seen | LeftOut) -> PlanAttestation:
        """What each layer became."""
        return self._attestation

    def compare_outputs(self, seen: Seen | LeftOut) -> Outputs | LeftOut:
        """Run the plan and its graph, where that was asked for and a driver is found."""
        if not self.subject.options.run_plan:
            return LeftOut(step=Step.OUTPUTS, reason=Reason.NOT_ASKED)
        from dq_deploy.verify.plan.run import PlanRun, run_of_plan

        self.subject.options.progress("running the plan")
        found = run_of_plan(self.subject.path, self.subject.record)
        # what is inside stays unproven, so even outputs that agree are no proof
        return Outputs(failures=(found.text,)) if isinstance(found, PlanRun) else found

    def compare_memory(self) -> LeftOut:
        """Not done: what a GPU holds of a plan cannot be read."""
        return LeftOut(step=Step.MEMORY, reason=Reason.IS_THE_FILE)

    def report(self, evidence: Evidence[PlanAttestation]) -> PlanReport:
        """What each layer became, and why it was not compared."""
        outputs = evidence.outputs
        comparison = outputs.text if isinstance(outputs, LeftOut) else "; ".join(outputs.failures)
        return PlanReport(
            engine=self.subject.path.name,
            manifest=self.manifest,
            record_checked=self.subject.record is not None,
            attestation=evidence.kernels,
            comparison=comparison,
            failures=(comparison,) if self.subject.options.run_plan else (),
            seconds=evidence.seconds,
            im2col_bytes=sum(layer.im2col_bytes or 0 for layer in self.manifest.layers),
            left_out=evidence.left_out,
        )
