"""What a model takes and gives, and whether an infer request brings it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dq_deploy.serve.kserve.body import InferRequest, RequestedOutput
from dq_deploy.serve.kserve.tensors import Tensor, shown
from dq_deploy.serve.web.errors import ApiError

FREE = -1
"""A size that may differ from request to request."""


@dataclass(frozen=True, kw_only=True)
class TensorForm:
    """An input or output: its datatype as KServe names it, and its shape with -1 for free sizes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelForm:
    """A model as it is described.

    Attributes:
        name: under which it is asked.
        platform: what runs it.
        inputs: what it takes.
        outputs: what it gives.
        most_rows: samples of a request; 0 where no axis in front counts them.
        absent: inputs that the same model has elsewhere, each with why it has none here.
    """

    name: str
    platform: str
    inputs: tuple[TensorForm, ...]
    outputs: tuple[TensorForm, ...]
    most_rows: int
    absent: Mapping[str, str]


def checked_inputs(request: InferRequest, form: ModelForm) -> dict[str, Tensor]:
    """The tensors of a request by name.

    Raises:
        ApiError: one is missing, not known, of another datatype or shape.
    """
    given = {tensor.name: tensor for tensor in request.inputs}
    forms = {entry.name: entry for entry in form.inputs}
    for name, tensor in given.items():
        if name not in forms:
            why = form.absent.get(name, f"{form.name} has no input {shown(name)}; expected {', '.join(forms)}")
            raise ApiError(400, why)
        _check_form(tensor, forms[name])
    for entry in form.inputs:
        if entry.name not in given and not entry.optional:
            raise ApiError(400, f"input {entry.name} is missing, expected {entry.datatype} {list(entry.shape)}")
    return given


def _check_form(tensor: Tensor, form: TensorForm) -> None:
    if tensor.datatype != form.datatype:
        raise ApiError(400, f"input {form.name} is {tensor.datatype}, expected {form.datatype}")
    shape = tensor.values.shape
    if len(shape) != len(form.shape) or any(
        want not in (FREE, have) for want, have in zip(form.shape, shape, strict=True)
    ):
        raise ApiError(400, f"input {form.name} has the shape {list(shape)}, expected {list(form.shape)}")


def wanted_outputs(request: InferRequest, form: ModelForm) -> Sequence[RequestedOutput]:
    """The outputs to be given.

    Raises:
        ApiError: one that the model does not have.
    """
    known = [entry.name for entry in form.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise ApiError(400, f"{form.name} has no output {shown(output.name)}; expected {', '.join(known)}")
    return request.outputs or [RequestedOutput(name=name, binary=request.binary) for name in known]
