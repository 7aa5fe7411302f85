"""Errors a user can act on: each message says what was got, what was expected, and what to do."""

from __future__ import annotations


class DqError(Exception):
    """A mistake in the input or the options. Commands print it as one line and exit with 2."""

    exit_code = 2


class FileProblemError(DqError):
    """A file is missing, truncated, not of the expected format, or cannot be written."""


class RecordError(DqError):
    """A quantized model breaks one of its invariants, or was written by a newer version."""


class ModelError(DqError):
    """A float model folder is not one this project can load, or has an unsupported layer."""


class InputError(DqError):
    """A tensor given to an engine has the wrong name, shape, type, or a non-finite value."""


class OptionError(DqError):
    """A command-line option or preset is contradictory or out of range."""


class MissingDependencyError(DqError):
    """An optional library is needed; the message names the extra that installs it."""


class BuildError(DqError):
    """An engine builder refused a model, crashed, or ran out of memory or time."""


class GuaranteeError(DqError):
    """A guarantee that was asked for does not hold. Commands exit with 3."""

    exit_code = 3


class NonFiniteError(GuaranteeError):
    """An engine produced NaN or infinity."""
