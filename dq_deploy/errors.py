"""Errors a user can act on: each message says what was got, what was expected, and what to do."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path


class DqError(Exception):
    """A mistake in the input or the options. Commands print it as one line and exit with 2."""

    exit_code = 2


class FileProblemError(DqError):
    """A file is missing, truncated, not of the expected format, or cannot be written."""


class ReaderGoneError(FileProblemError):
    """The reader of this process's own output went away. Commands say nothing and exit with 141."""

    exit_code = 141


class RecordError(DqError):
    """A quantized model breaks one of its invariants, or was written by a newer version."""


class ModelError(DqError):
    """A float model folder is not one this project can load, or has an unsupported layer."""


class InputError(DqError):
    """A tensor given to an engine has the wrong name, shape, type, or a non-finite value."""


class OptionError(DqError):
    """An option or a preset is contradictory or out of range."""


class MissingDependencyError(DqError):
    """An optional library is needed; the message names the extra that installs it."""


class BuildError(DqError):
    """An engine builder refused a model, crashed, or ran out of memory or time."""


class GuaranteeError(DqError):
    """A guarantee that was asked for does not hold. Commands exit with 3."""

    exit_code = 3


class NonFiniteError(GuaranteeError):
    """An engine produced NaN or infinity."""


class LibraryError(DqError):
    """A library refused or failed inside the work; the message names the layer or step, and what it said."""


class LostProcessError(DqError):
    """Another process of the same run ended. Commands exit with 4."""

    exit_code = 4


class DqWarning(UserWarning):
    """Something that users of the library and of the commands are told in one line."""


class SchedulerWarning(DqWarning):
    """A pipeline's scheduler samples otherwise than the one that a record was calibrated with."""


class RepackedWarning(DqWarning):
    """A program file was opened for another instruction set than its weights are packed for, which takes longer."""


_PACKAGES = (Path(__file__).resolve().parent,)
_OURS = ("dq_deploy", "dq_kernels")
_SITE = ("site-packages", "dist-packages")
_LONGEST_WORDS = 160
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment from shared object",
    "out of memory",
    "bad_alloc",
    "failed to allocate memory",
    "not enough memory",
)


def words_of(error: BaseException) -> str:
    """What another library's exception says: its type and one line, shortened."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_WORDS:
        text = f"{text[: _LONGEST_WORDS - 3]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: Exception) -> str:
    """What a library's exception says, in one line; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any library says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    return not isinstance(error, DqError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise what says that memory ran out as a MemoryError: no other advice fits it.

    Raises:
        MemoryError: where the exception says so.
    """
    if isinstance(error, MemoryError):
        raise error
    if is_out_of_memory(error):
        raise MemoryError(words_of(error)) from error


def is_of_this_package(error: BaseException) -> bool:
    """Whether a statement of this package raised it, and no compiled library through one: then it is our own fault."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or isinstance(error, RuntimeError):
        return False
    raised_in = Path(frames[-1][0].f_code.co_filename)
    return any(package in raised_in.parents for package in _PACKAGES)


def is_of_the_caller(error: BaseException) -> bool:
    """Whether the exception's class is defined by neither Python nor an installed package: a callback's way out."""
    name = type(error).__module__
    if name.partition(".")[0] in _OURS:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:  # built in, or made by a compiled library
        return False
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return installed.isdisjoint(Path(file).resolve().parents)


def library_of(error: BaseException) -> str | None:
    """The package that raised it, or None for this program and the standard library.

    Told by its class, by the file of the raising statement, or by its kind: no statement of this program raises a bare
    RuntimeError, a compiled library does.
    """
    by_class = type(error).__module__.partition(".")[0]
    if by_class not in ("builtins", "__main__", "tests", *_OURS):
        return None if by_class in sys.stdlib_module_names else by_class
    frames = list(traceback.walk_tb(error.__traceback__))
    parts = Path(frames[-1][0].f_code.co_filename).parts if frames else ()
    for index, part in enumerate(parts[:-1]):
        if part in _SITE:
            return parts[index + 1].removesuffix(".py")
    ours = bool(frames) and _PACKAGES[0] in Path(frames[-1][0].f_code.co_filename).parents
    return "a compiled library" if type(error) is RuntimeError and ours else None


def explained(error: Exception) -> tuple[str, int]:
    """One line of what any exception means to a user, and the exit code: 1 only for a fault of this program."""
    if isinstance(error, DqError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        why = f" ({error})" if str(error) else ""
        return f"there is not enough memory{why}; give a smaller model or batch, or more memory", 2
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "the system lets this process start no more threads; give fewer, or raise `ulimit -u`", 2
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        return f"the system says {error.strerror or error}{name}", 2
    if isinstance(error, UnicodeError):
        return f"a text or a name is no UTF-8 ({words_of(error)}); rename the file", 2
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read", 2
    library = library_of(error)
    if library is None:
        return f"internal error: {type(error).__name__}: {error}", 1
    return f"{library} failed: {words_of(error)}", 2


@contextlib.contextmanager
def library_errors(place: str | Callable[[BaseException], str], advice: str) -> Iterator[None]:
    """Turn what a library raises inside the block into one line with the place and what to do.

    This project's own errors, its faults, interrupts and what a caller's callback raises pass as they are; memory that
    ran out stays a MemoryError.

    Args:
        place: where the work is, as `step 3 of 20`; or a function that finds it from the exception.
        advice: what to do.

    Raises:
        LibraryError: in place of any other exception.
    """
    try:
        yield
    except DqError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            where = place if isinstance(place, str) else place(error)
            raise MemoryError(f"{where}: {words_of(error)}") from error
        if is_of_this_package(error) or is_of_the_caller(error):
            raise
        where = place if isinstance(place, str) else place(error)
        raise LibraryError(f"{where}: {words_of(error)}; {advice}") from error
