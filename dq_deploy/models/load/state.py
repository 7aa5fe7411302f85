"""The weights of a denoiser by today's names, and how a module takes them over: every name and shape must match."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dq_deploy.errors import DqError, ModelError
from dq_deploy.models.load.tensor_file import TensorFile
from dq_deploy.models.load.weight_files import WeightFiles

if TYPE_CHECKING:
    import torch

_OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))

_QUANTIZED_BY = (
    (r"\.(SCB|absmax|quant_map|nested_absmax|quant_state\..*)$", "bitsandbytes"),
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"(^scaled_fp8|\.(scale_weight|scale_input|weight_scale|input_scale|comfy_quant))$", "scaled float8"),
    (r"\.(_data|_scale)$|\.weight:_", "optimum-quanto or torchao"),
)
"""What the names of other tools' quantized tensors look like."""

_LORA = re.compile(r"\.lora_(A|B|up|down)\b|^lora_")


class FileState(Mapping[str, "torch.Tensor"]):
    """The tensors of several files by name, each read when it is asked for."""

    def __init__(self, weights: WeightFiles) -> None:
        """Open every file and hold it against the index.

        Raises:
            ModelError: a file is damaged, or holds other tensors than the index says.
        """
        self._places: dict[str, tuple[TensorFile, str]] = {}
        for path in weights.files:
            file = TensorFile(path)
            expected = set(file.names) if weights.keys is None else weights.keys[path]
            if other := set(file.names) ^ expected:
                raise ModelError(f"{path} and its index {weights.name.name} differ in {few(other)}; copy both again")
            self._places.update({_renamed(name): (file, name) for name in file.names})

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor, as its file holds it."""
        file, own = self._places[name]
        return file.read(own)

    def __iter__(self) -> Iterator[str]:
        """The names, file by file."""
        return iter(self._places)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._places)


def _renamed(key: str) -> str:
    """Names of attention layers written by diffusers before 0.15 become today's."""
    for old, new in _OLD_ATTENTION:
        key = re.sub(rf"(attentions\.\d+)\.{old}\.(weight|bias)$", rf"\1.{new}.\2", key)
    return key


def few(names: set[str]) -> str:
    """Up to three names, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def fit_state(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str,
    error_type: type[DqError] = ModelError,
) -> None:
    """Put a state dict into a module, tensor by tensor, converted to the module's types.

    What is of the right type already stays where it is, in the map of its file too. A dict is emptied meanwhile, so
    that no tensor is held twice.

    Raises:
        ModelError: (or `error_type`) names the missing, unknown, misshapen or non-finite tensors.
    """
    expected = module.state_dict()
    _check_names(set(expected), _without_ignored(module, state), source, error_type)
    for key, wanted in expected.items():
        value = state[key]
        if tuple(value.shape) != tuple(wanted.shape):
            raise error_type(f"{source}: {key} has shape {tuple(value.shape)}, expected {tuple(wanted.shape)}")
        if wanted.dtype.is_floating_point != value.dtype.is_floating_point:
            raise error_type(f"{source}: {key} is {value.dtype}, expected {wanted.dtype}")
    ready = {}
    for key in [key for key in state if key in expected]:  # in the order of the files
        value = state.pop(key) if isinstance(state, dict) else state[key]
        value = value.to(expected[key].dtype)
        if value.is_floating_point() and not value.is_meta and not is_finite(value):
            raise error_type(f"{source}: {key} holds NaN or infinity, expected finite numbers")
        ready[key] = value.contiguous()
    module.load_state_dict(ready, assign=True)
    module.eval().requires_grad_(False)


def is_finite(value: torch.Tensor) -> bool:
    """Whether every element is; without a copy of the tensor."""
    if value.numel() == 0:
        return True
    low, high = value.aminmax()  # NaN in, NaN out
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _without_ignored(module: torch.nn.Module, names: Mapping[str, torch.Tensor]) -> set[str]:
    """The names without those that the class of the module says to leave out, as diffusers does."""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns)}


def _check_names(expected: set[str], given: set[str], source: str, error_type: type[DqError]) -> None:
    missing, unknown = expected - given, given - expected
    check_float_model(unknown, source, error_type)
    if missing:
        raise error_type(f"{source} lacks {few(missing)}, which the configuration asks for")
    if unknown:
        raise error_type(f"{source} has {few(unknown)}, which the configuration does not have")


def check_float_model(names: set[str], source: str, error_type: type[DqError] = ModelError) -> None:
    """Refuse names that other tools give to quantized weights, and those of LoRA factors.

    Raises:
        ModelError: (or `error_type`) says which.
    """
    for pattern, who in _QUANTIZED_BY:
        if found := {name for name in names if re.search(pattern, name)}:
            raise error_type(
                f"{source} holds weights that were quantized elsewhere ({who}: {few(found)}); give the float model"
            )
    if found := {name for name in names if _LORA.search(name)}:
        raise error_type(
            f"{source} holds LoRA factors ({few(found)}), expected a whole model; fuse them into it with diffusers "
            "and save that"
        )
