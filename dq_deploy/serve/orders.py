"""A request in the server, from the moment it is accepted to its last picture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from dq_deploy.errors import DqError, FileProblemError, InputError, LibraryError, NonFiniteError, OptionError
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.numerics.arrays import Array


class Stopped(DqError):
    """A request that ends before its time: its client went away, its time was up, or the server stops."""


class Status(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = (Status.DONE, Status.CANCELLED, Status.FAILED)


class Kind(Enum):
    """What is asked for."""

    GENERATION = "generation"
    EDIT = "edit"
    DENOISE = "denoise"


class Reason(Enum):
    """Why a request failed, for the status its client gets."""

    ASKED = "asked"  # the client's mistake
    TIME = "time"
    CANCELLED = "cancelled"
    STOPPING = "stopping"
    ENGINE = "engine"


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """How a picture becomes bytes: `png`, `jpeg` or `webp` with a quality of 0 to 100, or `raw` pixels."""

    name: str = "png"
    quality: int = 100


Whose = tuple[str, str]
"""A client, and whom it asks for: what a client says of its users moves nothing of another client's share."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a request is served.

    Attributes:
        client: whose it is; clients share the engine evenly.
        user: whom its client asks for; users of a client share what it has evenly.
        priority: higher ones go first.
        time_limit_s: seconds from now until it fails unless it is done.
        partial_images: pictures on the way that its client wants of each picture.
        step_events: whether its client wants to hear of each step.
        preview_every: a picture on the way each so many steps, 0 for none; with `step_events`.
        trace_parent: the client's trace, as the header `traceparent` of the W3C says it, or an empty text.
    """

    client: str = ""
    user: str = ""
    priority: int = 0
    time_limit_s: float = 300.0
    partial_images: int = 0
    step_events: bool = False
    preview_every: int = 0
    trace_parent: str = ""

    @property
    def whose(self) -> Whose:
        """Client and user."""
        return self.client, self.user


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A finished picture, or one on the way.

    Attributes:
        index: of the picture in its request.
        data: the file's bytes.
        width: in pixels, and so height.
        height: likewise.
        channels: 1 or 3.
        remarks: what the pipeline warned of.
    """

    index: int
    data: bytes
    width: int
    height: int
    channels: int = 3
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class StepDone:
    """A step of a picture is done; preview is the picture so far, where it was asked for."""

    index: int
    step: int
    steps: int
    preview: Picture | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PartialPicture:
    """One of the pictures on the way that the client asked for, counted from 0."""

    number: int
    picture: Picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """Why a request ended without its pictures, in one line."""

    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    """Outputs of a call of the denoiser alone, by name."""

    outputs: Mapping[str, Array]


Event = StepDone | PartialPicture | Picture | Denoised | Failure
"""What a client may hear of its request; the last is a failure, the last picture, or what was denoised."""


@dataclass(kw_only=True, eq=False)
class Order:
    """A request. Threads share it: what changes is read and written under its lock.

    Attributes:
        id: of the request.
        kind: what is asked for.
        call: of the pipeline; its count is the number of pictures. None for a call of the denoiser alone.
        terms: how it is served.
        format: of its pictures.
        feeds: inputs of a call of the denoiser alone, which its runner has checked.
        listener: called with each event, in order, by the thread that makes it; must not block.
        text_tokens: of its prompt, once a picture has begun; 0 without a tokenizer.
    """

    id: str
    kind: Kind
    call: PipelineCall | None
    terms: Terms
    format: PictureFormat = field(default_factory=PictureFormat)
    feeds: Mapping[str, Array] | None = None
    listener: Callable[[Event], None] | None = None
    status: Status = Status.WAITING
    accepted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ended_at: float | None = None
    pictures: list[Picture] = field(default_factory=list)
    failure: Failure | None = None
    text_tokens: int = 0
    steps_done: int = 0
    steps: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    on_end: list[Callable[[Order], None]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Pictures that are asked for; 1 for a call of the denoiser."""
        return 1 if self.call is None else self.call.count

    @property
    def deadline(self) -> float:
        """When its time is up, of the monotonic clock."""
        return self.accepted_at + self.terms.time_limit_s

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.status in ENDED

    def start(self) -> bool:
        """A picture begins; whether it is the first."""
        with self.lock:
            if self.status is not Status.WAITING:
                return False
            self.status, self.started_at = Status.RUNNING, time.monotonic()
            return True

    def tell(self, event: Event) -> bool:
        """Pass an event on; after the end nothing is passed on, and False is returned."""
        with self.lock:
            if self.ended:
                return False
            if isinstance(event, StepDone):
                self.steps_done += 1
                self.steps = max(self.steps, event.steps * self.count)
            if isinstance(event, Picture):
                self.pictures.append(event)
            last = isinstance(event, (Failure, Denoised)) or len(self.pictures) == self.count
            if last:
                self._end(event)
            wanted = not isinstance(event, StepDone) or self.terms.step_events
            if self.listener is not None and wanted:
                self.listener(event)
        if last:
            callbacks, self.on_end = self.on_end, []
            for callback in callbacks:
                callback(self)
        return True

    def fail(self, reason: Reason, message: str) -> bool:
        """End it without its pictures; False where it had ended."""
        return self.tell(Failure(reason=reason, message=message))

    def check_going_on(self) -> None:
        """Raise where it has ended or its time is up.

        Raises:
            Stopped: says why.
        """
        if not self.ended and time.monotonic() > self.deadline:
            self.fail(Reason.TIME, f"the request was not done within {self.terms.time_limit_s:g} s")
        if self.ended:
            raise Stopped(self.failure.message if self.failure is not None else "the request has ended")

    def _end(self, event: Event) -> None:
        self.status, self.ended_at = Status.DONE, time.monotonic()
        if isinstance(event, Failure):
            gave_up = event.reason in (Reason.CANCELLED, Reason.STOPPING)
            self.failure, self.status = event, Status.CANCELLED if gave_up else Status.FAILED


def reason_for(error: BaseException) -> Reason:
    """Whose fault an error of a picture is: the client's where the pipeline refuses what it asks for."""
    if isinstance(error, NonFiniteError):
        return Reason.ENGINE
    if isinstance(error, LibraryError):  # a pipeline that drew before refuses a value or a shape
        return Reason.ASKED if isinstance(error.__cause__, (ValueError, TypeError)) else Reason.ENGINE
    return Reason.ASKED if isinstance(error, (OptionError, InputError, FileProblemError)) else Reason.ENGINE
