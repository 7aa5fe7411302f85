"""Sampling runs of a float denoiser by its pipeline, whose calls become calibration inputs."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.calibration.recording.calls import TIMESTEP, SeenCall, array_of, watch_calls
from dq_deploy.calibration.recording.derived_call import check_same_arguments
from dq_deploy.calibration.recording.finite_watch import FiniteWatch
from dq_deploy.calibration.recording.placing import placed
from dq_deploy.calibration.recording.recorded_inputs import Drawn, RecordedInputs
from dq_deploy.calibration.recording.rows import InputRows, free_disk_bytes
from dq_deploy.calibration.sharding.rows import brought_together
from dq_deploy.calibration.sharding.share import bounds_of
from dq_deploy.calibration.sharding.workers import Workers
from dq_deploy.errors import InputError, OptionError, library_errors
from dq_deploy.models import engine_name
from dq_deploy.models.output_class import OutputClass
from dq_deploy.models.pipeline import scheduler_name
from dq_deploy.models.pipeline.call import generators_of, undecoded_output
from dq_deploy.models.pipeline.open import quiet
from dq_deploy.models.sizes import BATCH, sized
from dq_deploy.numerics.arrays import F32, F64, I64, Array
from dq_deploy.record import Call

if TYPE_CHECKING:
    import torch

    from dq_deploy.models.pipeline import PipelineCall

GIB = 1 << 30

NOISE_OFFSET = 500_000_009
"""Keeps calibration noise apart from the noise of pictures sampled with the same seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Visits:
    """Where a run calls the denoiser.

    Attributes:
        timesteps: [T] float32, strictly increasing: those the denoiser is given.
        rows: [T] inputs of one picture at each; more than one with guidance, or where a scheduler comes twice.
        influence: [T] how far the next sample moves for an error of one in the output; None where it was not asked
            for, or the pipeline's scheduler does not say it.
    """

    timesteps: F32
    rows: I64
    influence: F64 | None = None


class _LastStepError(BaseException):
    """Ends a run of a pipeline; no error of it, so nothing on the way takes it for one."""


class SamplingRun:
    """A pipeline around a float denoiser, asked for pictures whose calls are recorded.

    Picture i depends on the seed and i only: it has its own random generator.

    Attributes:
        pipeline: of diffusers, with the module as its denoiser.
        module: the float denoiser.
        call: how it is called.
        asked: of the pipeline.
        at_once: pictures in one run of the pipeline.
        device: where the pipeline draws; what a denoiser is not computed for is done on the CPU.
    """

    def __init__(
        self,
        pipeline: Any,
        module: torch.nn.Module,
        call: Call,
        asked: PipelineCall,
        *,
        at_once: int = 1,
        device: str = "cpu",
    ) -> None:
        if at_once < 1:
            raise OptionError(f"batch is {at_once}, expected at least 1")
        self.pipeline, self.module, self.call, self.asked, self.at_once = pipeline, module, call, asked, at_once
        self.device = device
        self._expected = {item.name: item for item in call.inputs}
        self._steps: int | None = None

    @property
    def scheduler(self) -> str:
        """Class of the scheduler that takes the steps."""
        steps = scheduler_name(self.pipeline, self.module)
        return "no scheduler" if steps is None else type(getattr(self.pipeline, steps)).__name__

    @property
    def kind(self) -> str:
        """Class of the pipeline."""
        return type(self.pipeline).__name__

    def visits(self, *, influence: bool = False) -> Visits:
        """What timesteps one picture visits; no denoiser is computed, it gives zeros.

        Args:
            influence: also what an error in the output does, probed with the scheduler's own steps.

        Raises:
            InputError: the pipeline calls the denoiser otherwise than `call` says.
        """
        seen: list[F32] = []
        moved: dict[float, float] = {}

        def note(call: SeenCall) -> None:
            self._check(call)
            seen.append(np.asarray(call.tensors[TIMESTEP].cpu().numpy(), np.float32))

        with ExitStack() as stack:
            stack.enter_context(self._without_computing())
            if influence:
                stack.enter_context(self._probing(lambda far: moved.update(_larger(moved, float(seen[-1][0]), far))))
            self._run([0], note)
        timesteps, rows = np.unique(np.concatenate(seen), return_counts=True)
        known = [moved.get(float(t)) for t in timesteps]
        whole = influence and all(far is not None for far in known)
        return Visits(
            timesteps=timesteps, rows=rows.astype(np.int64), influence=np.array(known, np.float64) if whole else None
        )

    def record(
        self, pictures: int, *, memory_gib: float, progress: Callable[[int, int], None] | None = None
    ) -> RecordedInputs:
        """Draw pictures with the float denoiser and keep every input it is given.

        Args:
            pictures: to draw; fewer are where not all their inputs fit.
            memory_gib: of inputs held in memory; what is more goes to the disk.
            progress: called with (pictures done, pictures).

        Raises:
            OptionError: the inputs of not even one picture fit.
            NonFiniteError: the float model, or a step behind it, gives NaN or infinity.
            InputError: the pipeline calls the denoiser otherwise than `call` says.
        """
        found = self.record_shared(pictures, Workers(), memory_gib=memory_gib, progress=progress)
        assert found is not None
        return found

    def record_shared(
        self,
        pictures: int,
        workers: Workers,
        *,
        memory_gib: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> RecordedInputs | None:
        """As `record`, by several processes that draw a share each.

        Returns:
            All inputs in the first process, None in the others.

        Raises:
            OptionError: the inputs of not even one picture fit, or with shards not those of all.
            NonFiniteError: the float model, or a step behind it, gives NaN or infinity.
            InputError: the pipeline calls the denoiser otherwise than `call` says.
        """
        if pictures < 1:
            raise OptionError(f"samples is {pictures}, expected at least 1")
        visits = self.visits()
        each = int(visits.rows.sum()) * self._row_bytes()
        count = workers.first(lambda: _pictures_that_fit(pictures, each, memory_gib * GIB))
        if count < pictures and workers.shards > 1:
            raise OptionError(
                f"the inputs of {count} of {pictures} pictures fit in memory_gib and on the disk, expected all where "
                "processes share them; give more `memory_gib`, or fewer `samples`"
            )
        bounds, done = bounds_of(count, workers.shards), workers.tally()
        drawn: dict[int, Drawn] = {}

        def of_shard(shard: int) -> None:
            drawn[shard] = Drawn(InputRows(memory_gib * GIB / len(workers.mine)))
            for start in range(bounds[shard], bounds[shard + 1], self.at_once):
                indices = range(start, min(start + self.at_once, bounds[shard + 1]))
                with self._watching_outputs(len(visits.timesteps)) as watch:
                    self._run(indices, partial(self._keep, watch, indices, drawn[shard]))
                told = done.add(len(indices))
                if progress is not None:
                    progress(told, count)

        with placed(self.pipeline, self.module, self.device):
            workers.of_shards(of_shard)
        if workers.count == 1 and workers.shards == 1:
            return drawn[0].recorded(drawn[0].rows, pictures=count, asked=pictures)
        rows, whole = InputRows(memory_gib * GIB), Drawn(InputRows(0))
        for own, shared, owners in brought_together(workers, lambda shard: drawn.pop(shard).pieces()):
            rows.add(own, shared)
            whole.note(own, owners)
        return whole.recorded(rows, pictures=count, asked=pictures) if workers.is_first else None

    def _keep(self, watch: FiniteWatch, indices: Sequence[int], drawn: Drawn, call: SeenCall) -> None:
        """Take in a call before it is computed."""
        watch.enter(call)
        own, shared = self._rows_of(call)
        drawn.rows.add(own, shared)
        drawn.note(own, np.resize(np.asarray(indices, np.int64), call.batch))

    def watched(self, pictures: int, on_call: Callable[[SeenCall], None]) -> None:
        """Draw pictures with the float denoiser; `on_call` is told of every call before it is computed."""

        def both(watch: FiniteWatch, call: SeenCall) -> None:
            watch.enter(call)
            on_call(call)

        with placed(self.pipeline, self.module, self.device):
            for start in range(0, pictures, self.at_once):
                with self._watching_outputs(0) as watch:
                    indices = range(start, min(start + self.at_once, pictures))
                    self._run(indices, partial(both, watch))

    def last_samples(self, indices: Sequence[int], *, gradients: bool = False) -> torch.Tensor:
        """What the scheduler's last step gives, [B, ...]; nothing behind it is computed.

        Args:
            indices: of the pictures.
            gradients: they pass the whole run, from the samples to whatever answers for the denoiser.

        Raises:
            OptionError: no scheduler takes the steps, or gradients do not pass the pipeline.
        """
        import torch

        with torch.set_grad_enabled(gradients), self._until_last_step() as taken:
            self._run(indices, lambda _call: None, gradients=gradients)
        sample = taken[-1]
        if gradients and not sample.requires_grad:
            raise OptionError(f"gradients do not pass a {self.kind} with a {self.scheduler}; use another scheduler")
        return sample

    def check_gradients(self) -> None:
        """Refuse a pipeline that gradients do not pass; no denoiser is computed.

        Raises:
            OptionError: they do not, or no scheduler takes the steps.
        """
        import torch

        with self._without_computing(torch.zeros((), requires_grad=True)):
            self.last_samples([0], gradients=True)

    @contextmanager
    def _until_last_step(self) -> Iterator[list[torch.Tensor]]:
        """Inside, a run ends behind the scheduler's last step; the list holds what that one gave."""
        if self._steps is None:
            with self._without_computing(), self._watching_steps(lambda _sample: None) as steps:
                self._run([0], lambda _call: None)
            self._steps = steps[0]
        taken: list[torch.Tensor] = []

        def note(sample: torch.Tensor) -> None:
            taken[:] = [sample]
            if steps[0] == self._steps:
                raise _LastStepError

        with contextlib.suppress(_LastStepError), self._watching_steps(note) as steps:
            yield taken

    @contextmanager
    def _watching_steps(self, on_sample: Callable[[torch.Tensor], None]) -> Iterator[list[int]]:
        """Inside, `on_sample` is told what each step of the scheduler gives; the list holds how many there were."""
        name = scheduler_name(self.pipeline, self.module)
        before = None if name is None else getattr(self.pipeline, name)
        if name is None or before is None or not hasattr(before, "step"):
            raise OptionError(f"a {self.kind} takes steps without a scheduler, expected one whose steps can be seen")
        scheduler, count = copy.deepcopy(before), [0]  # a copy, which may keep what gradients passed
        step = scheduler.step

        @functools.wraps(step)  # pipelines look at what it takes
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            count[0] += 1
            on_sample(result[0] if isinstance(result, tuple) else result.prev_sample)
            return result

        scheduler.__dict__["step"] = watched
        setattr(self.pipeline, name, scheduler)
        try:
            yield count
        finally:
            setattr(self.pipeline, name, before)

    def _run(self, indices: Sequence[int], on_call: Callable[[SeenCall], object], *, gradients: bool = False) -> None:
        place = ["before the first step"]
        told = 0

        def note(call: SeenCall) -> None:
            nonlocal told
            told += 1
            place[0] = f"step {told} (timestep {float(call.tensors[TIMESTEP][0]):g})"
            on_call(call)

        asked = replace(self.asked, count=max(self.asked.count, indices[-1] + 1))
        arguments = asked.arguments(self.pipeline, indices, output_type=undecoded_output(self.pipeline))
        if "generator" in arguments:
            arguments["generator"] = generators_of(self.asked.seed, [NOISE_OFFSET + index for index in indices])
        with (
            quiet(),
            library_errors(
                lambda _error: f"sampling with the float model, {place[0]}",
                "check the model's configuration and its scheduler's",
            ),
            watch_calls(self.module, note),
        ):
            if gradients:  # diffusers' pipelines switch them off
                inspect.unwrap(type(self.pipeline).__call__)(self.pipeline, **arguments)
            else:
                self.pipeline(**arguments)

    def _check(self, call: SeenCall) -> None:
        """Refuse a call with other inputs, constants or sizes than expected.

        Raises:
            InputError: names the first.
        """
        given = call.tensors
        check_same_arguments(self._reference(call), call)
        for name, item in self._expected.items():
            expected = sized(item.shape, call.batch, self.call.sizes)
            if tuple(given[name].shape) != expected:
                raise InputError(
                    f"the pipeline gives the denoiser {name} of shape {list(given[name].shape)}, expected "
                    f"{list(expected)} as in the first call: all pictures have one size and all prompts one length"
                )

    def _reference(self, call: SeenCall) -> SeenCall:
        """The expected call in the form of a seen one; only names, ranks and constants count."""
        import torch

        shapes = {name: sized(item.shape, call.batch, self.call.sizes) for name, item in self._expected.items()}
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return SeenCall(tensors=tensors, plain=self.call.constants, sample=call.sample)

    def _rows_of(self, call: SeenCall) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs by the names of engines: those with an axis of samples, and the others."""
        self._check(call)
        own: dict[str, Array] = {}
        shared: dict[str, Array] = {}
        for name, value in call.tensors.items():
            shape = self._expected[name].shape
            into = own if shape and shape[0] == BATCH else shared
            into[engine_name(name)] = array_of(name, value)
        return own, shared

    def _row_bytes(self) -> int:
        shapes = [(item, sized(item.shape, 1, self.call.sizes)) for item in self.call.inputs if BATCH in item.shape]
        return sum(int(np.prod(shape)) * _bytes_of(item.dtype) for item, shape in shapes)

    @contextmanager
    def _watching_outputs(self, steps: int) -> Iterator[FiniteWatch]:
        watch = FiniteWatch(self.module, self.call.constants, steps)
        handle = self.module.register_forward_hook(watch.leave)
        try:
            yield watch
        finally:
            handle.remove()

    @contextmanager
    def _without_computing(self, zero: torch.Tensor | None = None) -> Iterator[None]:
        """Inside, the module gives zeros of its outputs' shapes, also where something else answers for it.

        Args:
            zero: the zero that they are made of, which may take gradients.
        """
        import torch

        zero = torch.zeros(()) if zero is None else zero

        before = self.module.__dict__.get("forward")
        batch, answer = [0], OutputClass(type(self.module))

        def zeros(*_args: Any, return_dict: bool = True, **_kwargs: Any) -> Any:
            shapes = {name: sized(shape, batch[0], self.call.sizes) for name, shape in self.call.outputs.items()}
            return answer.of({name: zero.expand(shape).clone() for name, shape in shapes.items()}, as_dict=return_dict)

        def count(call: SeenCall) -> None:
            batch[0] = call.batch

        with watch_calls(self.module, count):
            self.module.__dict__["forward"] = zeros
            try:
                yield
            finally:
                del self.module.__dict__["forward"]
                if before is not None:
                    self.module.__dict__["forward"] = before

    @contextmanager
    def _probing(self, on_step: Callable[[float], None]) -> Iterator[None]:
        """Inside, each step of the scheduler tells what an output of one moves, against one of zero."""
        steps = scheduler_name(self.pipeline, self.module)
        scheduler = None if steps is None else getattr(self.pipeline, steps)
        if scheduler is None or not hasattr(scheduler, "step"):
            yield
            return
        step = scheduler.step

        def probed(output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            # what a copy of the scheduler cannot do is left out
            with contextlib.suppress(Exception):
                on_step(_moved(scheduler, type(scheduler).step, timestep, output.shape, sample.shape, args, kwargs))
            return step(output, timestep, sample, *args, **kwargs)

        scheduler.__dict__["step"] = probed
        try:
            yield
        finally:
            del scheduler.__dict__["step"]


def _bytes_of(dtype: str) -> int:
    return 4 if dtype == "bfloat16" else max(np.dtype(dtype).itemsize, 4 if dtype == "float16" else 1)


def _larger(known: Mapping[float, float], timestep: float, far: float) -> dict[float, float]:
    return {timestep: max(known.get(timestep, 0.0), far)}


def _pictures_that_fit(pictures: int, each: int, limit_bytes: float) -> int:
    """Pictures whose inputs fit in memory, or else on the disk: twice, as they are put in order there.

    Raises:
        OptionError: not even one.
    """
    if pictures * each <= limit_bytes:
        return pictures
    free = free_disk_bytes()
    count = min(pictures, free // (2 * each))
    if count < 1:
        raise OptionError(
            f"memory_gib holds {limit_bytes / GIB:.3g} GiB of inputs and the temporary folder has {free / GIB:.3g} GiB "
            f"free, expected at least {2 * each / GIB:.3g} for the inputs of one picture; give more memory_gib, or "
            "set TMPDIR to a folder with room"
        )
    return count


def _moved(
    scheduler: Any,
    step: Callable[..., Any],
    timestep: Any,
    output_shape: Sequence[int],
    sample_shape: Sequence[int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> float:
    """How far an output of one moves the next sample, against one of zero, in the state the scheduler is in.

    What clips the sample is left out: it is no part of the step's arithmetic.
    """
    import torch

    found = []
    for value in (1.0, 0.0):
        probe = copy.deepcopy(scheduler)
        probe.__dict__.pop("step", None)
        for switch in ("clip_sample", "thresholding"):
            if probe.config.get(switch):
                probe.register_to_config(**{switch: False})
        given = {**kwargs, **({"return_dict": True} if "return_dict" in kwargs else {})}
        if given.get("generator") is not None:
            given["generator"] = _fresh_like(given["generator"])
        output, sample = torch.full(tuple(output_shape), value), torch.zeros(tuple(sample_shape))
        with torch.random.fork_rng(devices=[]):  # a step that adds noise of its own adds the same to both
            torch.manual_seed(0)
            found.append(step(probe, output, timestep, sample, *args, **given))
    far = found[0].prev_sample - found[1].prev_sample
    return float(far.abs().max())


def _fresh_like(generator: Any) -> Any:
    """Random generators in one and the same state, as many as are given."""
    import torch

    if isinstance(generator, list):
        return [torch.Generator().manual_seed(0) for _ in generator]
    return torch.Generator().manual_seed(0)
