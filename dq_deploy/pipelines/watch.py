"""Follows a pipeline while it runs: which timesteps it visits, how far it is, and where numbers stop being finite."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.models.pipeline import scheduler_name

OnStep = Callable[[int, int], None]

_STEPS = ("step", "step_pred")
"""Methods by which a scheduler of diffusers ends a step."""


class SamplingStopped(NonFiniteError):
    """A pipeline met a value that is not finite.

    Attributes:
        step: index of the step, from 0.
        arguments: of the denoiser's last call, by name.
    """

    def __init__(self, message: str, *, step: int, arguments: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.step = step
        self.arguments = arguments


class StepWatch:
    """A context manager around one run of a pipeline.

    The denoiser's calls are seen by hooks, the steps by the scheduler's own method; both are as before behind it.

    Attributes:
        timesteps: what the denoiser was given, a number for each call, in order.
        done: steps that are finished.
        arguments: of the denoiser's last call, by name.
    """

    def __init__(self, pipeline: Any, component: str, on_step: OnStep | None = None) -> None:
        self.pipeline = pipeline
        self.denoiser = getattr(pipeline, component)
        steps = scheduler_name(pipeline, self.denoiser)
        self.scheduler = None if steps is None else getattr(pipeline, steps)
        self.on_step = on_step
        self.timesteps: list[float] = []
        self.done = 0
        self.arguments: dict[str, Any] = {}
        self._signature = inspect.signature(getattr(self.denoiser, "float_class", type(self.denoiser)).forward)
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._watch_denoiser()
        for name in _STEPS:
            own = getattr(self.scheduler, name, None)
            if own is not None:
                setattr(self.scheduler, name, self._around(own))
        return self

    def _watch_denoiser(self) -> None:
        self._hooks = [self.denoiser.register_forward_pre_hook(self._before, with_kwargs=True)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for name in _STEPS:
            if self.scheduler is not None and name in vars(self.scheduler):
                delattr(self.scheduler, name)

    @property
    def steps(self) -> int:
        """Steps that the run takes, as far as the pipeline says."""
        told = getattr(self.pipeline, "_num_timesteps", None)
        timesteps = getattr(self.scheduler, "timesteps", None)
        return int(told) if told else 0 if timesteps is None else len(timesteps)

    def place(self) -> str:
        """The step that is running, in words."""
        timestep = f" (timestep {self.timesteps[-1]:g})" if self.timesteps else ""
        return f"step {self.done + 1} of {max(self.steps, self.done + 1)}{timestep}"

    def stopped(self, why: str) -> SamplingStopped:
        """What is raised where a number is not finite."""
        return SamplingStopped(f"{self.place()}: {why}", step=self.done, arguments=dict(self.arguments))

    def _before(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self.arguments = dict(self._signature.bind(denoiser, *args, **kwargs).arguments)
        except TypeError as error:
            raise OptionError(f"the pipeline calls its denoiser as its class cannot be called: {error}") from error
        self.arguments.pop("self", None)
        self.arguments.pop("return_dict", None)
        timestep = self.arguments.get("timestep")
        if timestep is not None:
            self.timesteps.append(float(torch.as_tensor(timestep).reshape(-1)[0]))

    def _around(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)  # pipelines look at the signature
        def step(model_output: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(model_output, torch.Tensor) and not bool(torch.isfinite(model_output).all()):
                raise self.stopped("the denoiser's output is not finite")
            result = own(model_output, *args, **kwargs)
            sample = result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", None)
            if isinstance(sample, torch.Tensor) and not bool(torch.isfinite(sample).all()):
                raise self.stopped("the latent behind the step is not finite")
            self._after(result)
            return result

        return step

    def _after(self, result: Any) -> None:
        """A step is done; result is what the scheduler gives."""
        self.done += 1
        if self.on_step is not None:
            self.on_step(self.done, max(self.steps, self.done))


class _Collected(logging.Handler):
    """In place of the handlers of diffusers' logger while some thread collects: each thread gets its own messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._of_thread = threading.local()
        self._guard, self._users = threading.Lock(), 0
        self._before: tuple[list[logging.Handler], int] = ([], logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        found: list[str] | None = getattr(self._of_thread, "found", None)
        message = " ".join(record.getMessage().split())
        if found is not None and message not in found:
            found.append(message)

    def begin(self) -> list[str]:
        """Messages of the calling thread from now on."""
        self._of_thread.found = found = list[str]()
        logger = logging.getLogger("diffusers")
        with self._guard:
            self._users += 1
            if self._users == 1:
                self._before, logger.handlers = (logger.handlers, logger.level), [self]
                logger.setLevel(logging.WARNING)  # a command has it higher: what is collected is said, not shown
        return found

    def end(self) -> None:
        """No more; behind the last thread the logger is as it was."""
        self._of_thread.found = None
        logger = logging.getLogger("diffusers")
        with self._guard:
            self._users -= 1
            if not self._users:
                logger.handlers = self._before[0]
                logger.setLevel(self._before[1])


_COLLECTED = _Collected()


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """What diffusers warns of inside the block, each once, in place of lines on the terminal: a prompt that is cut.

    Threads may be inside at once; each gets what it caused.
    """
    found = _COLLECTED.begin()
    try:
        yield found
    finally:
        _COLLECTED.end()
