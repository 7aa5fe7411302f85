"""What a denoiser of diffusers returns, made of tensors by their names."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import InputError

if TYPE_CHECKING:
    import torch
    from diffusers.utils import BaseOutput


class OutputClass:
    """The class of diffusers that the forward of a denoiser returns, by its annotation.

    Some video classes say a tensor there and return a Transformer2DModelOutput all the same.

    Attributes:
        kind: the class.
        fields: its fields, in order.
    """

    def __init__(self, float_class: type[torch.nn.Module]) -> None:
        """Look it up.

        Raises:
            InputError: the forward does not say what it returns.
        """
        import torch
        from diffusers.models.modeling_outputs import Transformer2DModelOutput
        from diffusers.utils import BaseOutput

        hints = typing.get_type_hints(float_class.forward)
        options = (hints.get("return"), *typing.get_args(hints.get("return")))
        found = next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseOutput)), None)
        if found is None and any(option is torch.Tensor for option in options):
            found = Transformer2DModelOutput
        if found is None:
            raise InputError(
                f"the class {float_class.__name__} does not say what it returns, expected an output of diffusers"
            )
        self.kind: type[BaseOutput] = found
        self.fields = tuple(field.name for field in dataclasses.fields(found))
        self._float_class = float_class.__name__

    def of(self, outputs: Mapping[str, torch.Tensor], *, as_dict: bool) -> Any:
        """The denoiser's answer.

        Args:
            outputs: by the names of `output_specs`, in order.
            as_dict: an instance of the class, else the tuple of its fields that diffusers gives for
                `return_dict=False`.

        Raises:
            InputError: the names are not those of the class.
        """
        if len(outputs) == 1 and len(self.fields) == 1:  # whatever an engine's layout calls it
            values: dict[str, Any] = {self.fields[0]: next(iter(outputs.values()))}
        else:
            values = {}
            for name, tensor in outputs.items():
                field, _, number = name.partition(".")
                if number:
                    values.setdefault(field, []).append(tensor)
                else:
                    values[field] = tensor
        if tuple(values) != self.fields:
            raise InputError(
                f"the engine returns {', '.join(outputs)}, but a {self._float_class} returns "
                f"{', '.join(self.fields)}; export it again"
            )
        return self.kind(**values) if as_dict else tuple(values.values())
