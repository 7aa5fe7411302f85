"""An engine in the denoiser's place of a diffusers pipeline: `pipe.unet = IntegerDenoiser("model.pt")`."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.utils import BaseOutput

from dq_deploy.engines.base import Runner
from dq_deploy.errors import InputError, NonFiniteError, OptionError
from dq_deploy.models import build_denoiser
from dq_deploy.models.call import ADDED_CONDITIONS
from dq_deploy.numerics.arrays import Array
from dq_deploy.open_engine import open_engine

_ADDED = "added_cond_kwargs."
_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class IntegerDenoiser(ModelMixin):
    """A quantized denoiser as a diffusers pipeline calls it.

    It takes the arguments of the float class, runs the engine and returns the output class of the float class. It
    answers for the float class's `config` and for the attributes a pipeline looks up, such as
    `unet.add_embedding.linear_1.in_features`; no float weights are held. The pipeline keeps its scheduler, its
    guidance and its prompt. Either of these puts it in place; by the second the float denoiser is never loaded::

        pipe.unet = IntegerDenoiser("model.pt")
        pipe = DiffusionPipeline.from_pretrained(folder, unet=IntegerDenoiser("model.pt"))

    The engine computes in float32 between its integer layers, on the device it was opened for. `to` says where the
    pipeline wants its tensors and of which float type: inputs are brought to the engine and outputs back.

    Attributes:
        runner: the engine.
        calls: how often the pipeline has called it.
    """

    def __init__(
        self,
        engine: str | os.PathLike[str] | Runner,
        *,
        threads: int | None = None,
        isa: str | None = None,
        device: str | None = None,
        hash_check: bool = True,
    ) -> None:
        """Open an engine.

        Args:
            engine: a record, an exported ONNX file or a plan; or a runner that is open already, which stays the
                caller's to close.
            threads: as of `open_engine`, and so the next three.
            isa: instruction set of the native engine.
            device: of the native engine.
            hash_check: refuse a file whose content is not what was written.

        Raises:
            DqError: the engine cannot be opened.
            OptionError: options for an engine that is open already.
            InputError: an engine without a manifest, which does not say what it stands for.
        """
        super().__init__()
        if isinstance(engine, Runner):
            given = {"threads": threads, "isa": isa, "device": device, "hash_check": None if hash_check else False}
            wrong = [name for name, value in given.items() if value is not None]
            if wrong:
                raise OptionError(f"got {', '.join(wrong)} for an engine that is open already, expected none")
            runner, owned = engine, False
        else:
            runner = open_engine(Path(engine), threads=threads, isa=isa, device=device, hash_check=hash_check)
            owned = True
        if runner.manifest is None or runner.manifest.family is None:
            raise InputError(f"engine {engine} has no manifest, expected one that says which denoiser it is")
        self.runner = runner
        self.calls = 0
        self._owned = owned
        self._place = torch.device("cpu")
        self._float_type = torch.float32
        # not a submodule: it has no weights, and nothing is to be moved, counted or saved
        self.__dict__["_float"] = build_denoiser(runner.manifest.family, runner.manifest.model_config, device="meta")
        self._signature = inspect.signature(type(self._float).forward)
        self._output_class = _output_class(type(self._float))

    @property
    def config(self) -> Any:
        """The float denoiser's configuration, as diffusers holds it."""
        return self.__dict__["_float"].config

    @property
    def device(self) -> torch.device:
        """Where the pipeline's tensors are: what `to` was told, at first the CPU."""
        return self._place

    @property
    def dtype(self) -> torch.dtype:
        """Float type of what the pipeline gives and gets: what `to` was told, at first float32."""
        return self._float_type

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Denoise once; arguments and result are those of the float class.

        `sample` is [B, C, H, W] of any float type on any device, and so is the output, of the same type and on the
        same device. `timestep` is one number, or [B] with one for each sample. The engine gets float32.

        Raises:
            InputError: an argument the engine has no input for, or one of another shape than it takes.
            NonFiniteError: the engine gave NaN or infinity; names the call and the timestep.
        """
        bound = self._signature.bind(self, *args, **kwargs).arguments
        bound.pop("self")
        as_dict = bound.pop("return_dict", True)
        sample = bound.get("sample", bound.get("hidden_states"))
        if not isinstance(sample, torch.Tensor):
            raise InputError(f"the sample is a {type(sample).__name__}, expected a tensor")
        feeds = self._feeds(bound, len(sample))
        self.calls += 1
        try:
            output = self.runner.run(feeds)[self.runner.outputs[0].name]
        except NonFiniteError as error:
            steps = np.unique(feeds["timestep"]).tolist()
            raise NonFiniteError(f"call {self.calls} of the denoiser, timestep {steps}: {error}") from error
        tensor = torch.from_numpy(np.ascontiguousarray(output)).to(device=sample.device, dtype=sample.dtype)
        return self._output_class(sample=tensor) if as_dict else (tensor,)

    def _feeds(self, given: Mapping[str, Any], batch: int) -> dict[str, Array]:
        """The engine's inputs.

        Raises:
            InputError: an argument that is no input of the engine and is not what the float class takes by default.
        """
        types = {spec.name: spec.dtype for spec in self.runner.inputs}
        feeds: dict[str, Array] = {}
        for name, value in _flat(given):
            mine = name.removeprefix(_ADDED) if name.removeprefix(_ADDED) in ADDED_CONDITIONS else name
            if mine in types:
                feeds[mine] = _array(mine, value, types[mine], batch)
            elif not self._is_default(name, value):
                raise InputError(
                    f"the pipeline gives {name}, {_words(value)}, which this engine has no input for; expected "
                    f"{', '.join(types)}"
                )
        return feeds

    def _is_default(self, name: str, value: Any) -> bool:
        if value is None or (isinstance(value, Mapping) and not value):
            return True
        parameter = self._signature.parameters.get(name)
        plain = isinstance(value, bool | int | float | str)
        return parameter is not None and plain and bool(value == parameter.default)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Say where the pipeline's tensors are and of which float type; the engine stays where it is.

        Raises:
            OptionError: a type that is no float type, or one that pipelines do not use.
        """
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and dtype not in _FLOAT_TYPES:
            raise OptionError(f"got the type {dtype}, expected one of {', '.join(map(str, _FLOAT_TYPES))}")
        self._place = self._place if device is None else device
        self._float_type = self._float_type if dtype is None else dtype
        return self

    def half(self, *args: Any) -> Self:
        """As `to(torch.float16)`."""
        return self.to(torch.float16)

    def float(self, *args: Any) -> Self:
        """As `to(torch.float32)`."""
        return self.to(torch.float32)

    def cuda(self, *args: Any, **kwargs: Any) -> Self:
        """As `to("cuda")`."""
        return self.to(torch.device("cuda", *args))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a folder of diffusers holds float weights.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "an integer denoiser cannot be saved as a folder of diffusers, which holds float weights; keep the record, "
            "or save the pipeline with its float denoiser"
        )

    def load_lora_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: LoRA adds to float weights.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "LoRA weights cannot be loaded into an integer denoiser: its weights are integers; load them into the "
            "float model, and quantize that"
        )

    def close(self) -> None:
        """Close the engine, unless it was given open."""
        if self._owned:
            self.runner.close()

    def __getattr__(self, name: str) -> Any:
        """What the float class has under this name: a number, a setting, a submodule without weights."""
        if name.startswith("_") or "_float" not in self.__dict__:
            raise AttributeError(f"an integer denoiser has no attribute {name!r}")
        try:
            found = getattr(self.__dict__["_float"], name)
        except AttributeError as error:
            raise AttributeError(
                f"neither an integer denoiser nor its float class has an attribute {name!r}"
            ) from error
        if callable(found) and not isinstance(found, torch.nn.Module):
            raise AttributeError(
                f"{name} of {type(self.__dict__['_float']).__name__} changes or reads float computation, and an "
                "integer denoiser has none: what it computes is fixed in the record"
            )
        return found


def _output_class(float_class: type[torch.nn.Module]) -> type[BaseOutput]:
    """The class that a denoiser's forward returns, by its annotation."""
    hints = typing.get_type_hints(float_class.forward)
    options = (hints.get("return"), *typing.get_args(hints.get("return")))
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseOutput):
            return option
    raise InputError(f"the class {float_class.__name__} does not say what it returns, expected an output of diffusers")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Arguments with those inside dicts and lists by dotted names, as `added_cond_kwargs.time_ids`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
            yield from _flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _array(name: str, value: Any, dtype: np.dtype[Any], batch: int) -> Array:
    """One input as the engine takes it: on the CPU, of its type; a timestep once a sample.

    Raises:
        InputError: a timestep that differs within a sample, a float where the engine takes whole numbers, or neither a
            tensor nor a number.
    """
    if isinstance(value, int | float):
        value = torch.tensor(value)
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} is a {type(value).__name__}, expected a tensor")
    if value.is_floating_point():
        if dtype.kind != "f":
            raise InputError(f"{name} is {value.dtype}, expected {dtype}: a fraction would be cut off")
        value = value.detach().float()  # numpy has no bfloat16
    array = value.detach().cpu().numpy().astype(dtype, copy=False)
    if name != "timestep":
        return np.ascontiguousarray(array)
    if array.size == 1:
        return np.full(batch, array.reshape(()), dtype)
    if array.shape != (batch,):
        raise InputError(
            f"timestep has shape {array.shape} for a batch of {batch}, expected one value a sample: one that differs "
            "within a sample is not supported"
        )
    return np.ascontiguousarray(array)


def _words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
