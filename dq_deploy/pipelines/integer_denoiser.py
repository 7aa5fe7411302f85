"""An engine in the denoiser's place of a diffusers pipeline: `pipe.unet = IntegerDenoiser("model.pt")`."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import torch
from diffusers import ModelMixin

from dq_deploy.engines.base import Runner
from dq_deploy.errors import InputError, NonFiniteError, OptionError
from dq_deploy.models import build_denoiser
from dq_deploy.models.output_class import OutputClass
from dq_deploy.models.pipeline.scheduler_values import check_trained_values, differences
from dq_deploy.open_engine import open_engine
from dq_deploy.pipelines.given import feeds_of, given_arguments
from dq_deploy.pipelines.stand_in import only_to_look_at

_LOGGER = logging.getLogger(__name__)

_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


_LORA = "LoRA adds to float weights, and its weights are integers; load LoRA into the float model, and quantize that"
_FIXED = "what it computes is fixed in the record"
_STATE = "it holds no weights of torch; open another record as IntegerDenoiser(path)"
_FILE = "its weights are those of its file; open it as IntegerDenoiser(path)"
_REFUSED = {
    "push_to_hub": "a folder of diffusers holds float weights; publish the record",
    "from_pretrained": _FILE,
    "from_config": _FILE,
    "load_state_dict": _STATE,
    "add_adapter": _LORA,
    "set_adapter": _LORA,
    "set_adapters": _LORA,
    "fuse_lora": _LORA,
    "_load_ip_adapter_weights": "an IP-Adapter brings attention layers of its own; load it into the float pipeline, "
    "and quantize that",
    "compile": "an engine is no torch code",
    "compile_repeated_blocks": "an engine is no torch code",
    "enable_cache": f"no features are kept from step to step: {_FIXED}",
    "set_attention_backend": _FIXED,
    "enable_xformers_memory_efficient_attention": _FIXED,
    "set_use_memory_efficient_attention_xformers": _FIXED,
    "enable_layerwise_casting": "its float type is float32",
    "enable_group_offload": "it holds no torch weights; say at its opening where the engine runs",
    "enable_parallelism": "it holds no torch weights",
    "enable_gradient_checkpointing": "it cannot be trained",
    "dequantize": _FIXED,
}
"""Methods that diffusers' models have, and why an integer denoiser has none of them."""


class IntegerDenoiser(ModelMixin):
    """A quantized denoiser as a diffusers pipeline calls it.

    It takes the arguments of the float class, runs the engine and returns the output class of the float class. It
    answers for the float class's `config` and for the attributes a pipeline looks up, such as
    `unet.add_embedding.linear_1.in_features`; no float weights are held. The pipeline keeps its scheduler, its
    guidance and its prompt. Either of these puts it in place; by the second the float denoiser is never loaded::

        pipe.unet = IntegerDenoiser("model.pt")
        pipe = DiffusionPipeline.from_pretrained(folder, unet=IntegerDenoiser("model.pt"))

    To another pipeline of the same components it goes by its name, as `from_pipe(pipe, unet=pipe.unet)`.

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
        attention: str | None = None,
        hash_check: bool = True,
    ) -> None:
        """Open an engine.

        Args:
            engine: a record, an exported ONNX file or a plan; or a runner that is open already, which stays the
                caller's to close.
            threads: as of `open_engine`, and so the next three.
            isa: instruction set of the native engine.
            device: of the native engine.
            attention: what the native engine computes attention's products in: float32, or as of `open_engine`.
            hash_check: refuse a file whose content is not what was written.

        Raises:
            DqError: the engine cannot be opened.
            OptionError: options for an engine that is open already.
            InputError: an engine without a manifest, which does not say what it stands for.
        """
        super().__init__()
        if isinstance(engine, Runner):
            given = {
                "threads": threads,
                "isa": isa,
                "device": device,
                "attention": attention,
                "hash_check": None if hash_check else False,
            }
            wrong = [name for name, value in given.items() if value is not None]
            if wrong:
                raise OptionError(f"got {', '.join(wrong)} for an engine that is open already, expected none")
            runner, owned = engine, False
        else:
            runner = open_engine(
                Path(engine), threads=threads, isa=isa, device=device, attention=attention, hash_check=hash_check
            )
            owned = True
        if runner.manifest is None or runner.manifest.family is None:
            raise InputError(f"engine {engine} has no manifest, expected one that says which denoiser it is")
        self.runner = runner
        self.calls = 0
        self._owned = owned
        self._place = torch.device("cpu")
        self._float_type = torch.float32
        # not a submodule: it has no weights, and nothing is to be moved, counted or saved
        stand_in = build_denoiser(runner.manifest.family, runner.manifest.model_config, device="meta")
        self.__dict__["_float"] = only_to_look_at(stand_in)
        self.__dict__["__module__"] = type(stand_in).__module__  # what a pipeline writes into its model_index.json
        self._signature = inspect.signature(type(self._float).forward)
        self._output_class = OutputClass(type(self._float))

    if not TYPE_CHECKING:  # where it is taken for a variable

        @property
        def __class__(self) -> type:
            """The float class to who asks with isinstance, as pipelines do that take one class of a ControlNet."""
            found = self.__dict__.get("_float")
            return IntegerDenoiser if found is None else type(found)

    def _get_name(self) -> str:
        """What it calls itself, as in a repr."""
        return "IntegerDenoiser"

    @property
    def config(self) -> Any:
        """The float denoiser's configuration, as diffusers holds it."""
        return self.__dict__["_float"].config

    @property
    def float_class(self) -> type[torch.nn.Module]:
        """The class of diffusers it stands for."""
        return type(self.__dict__["_float"])

    @property
    def device(self) -> torch.device:
        """Where the pipeline's tensors are: what `to` was told, at first the CPU."""
        return self._place

    @property
    def dtype(self) -> torch.dtype:
        """Float type of what the pipeline gives and gets: what `to` was told, at first float32."""
        return self._float_type

    @torch.compiler.disable  # an engine is no torch code: torch.compile leaves it as it is
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Denoise once; arguments and result are those of the float class.

        `sample` is [B, C, H, W] of any float type on any device, and so is the output, of the same type and on the
        same device. `timestep` is one number, or [B] with one for each sample. The engine gets float32.

        Raises:
            InputError: an argument the engine has no input for, or one of another shape than it takes.
            NonFiniteError: the engine gave NaN or infinity; names the call and the timestep.
        """
        bound = self._signature.bind(self, *args, **kwargs)
        as_dict = bool(bound.arguments.get("return_dict", True))
        given = given_arguments(bound, self._signature)
        feeds = feeds_of(given, self.runner)
        sample = given.tensors[given.sample]
        self.calls += 1
        try:
            outputs = self.runner.run(feeds)
        except NonFiniteError as error:
            steps = np.unique(feeds["timestep"]).tolist() if "timestep" in feeds else []
            raise NonFiniteError(f"call {self.calls} of the denoiser, timestep {steps}: {error}") from error
        tensors = {
            spec.name: torch.from_numpy(np.ascontiguousarray(outputs[spec.name])).to(sample.device, sample.dtype)
            for spec in self.runner.outputs
        }
        return self._output_class.of(tensors, as_dict=as_dict)

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

    def parameters(self, recurse: bool = True) -> Iterator[torch.Tensor]:
        """One tensor without numbers: it says where `to` put the denoiser, which CPU offload looks up."""
        yield torch.empty(0, device=self._place, dtype=self._float_type)

    def half(self, *args: Any) -> Self:
        """As `to(torch.float16)`."""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """As `to(torch.bfloat16)`."""
        return self.to(torch.bfloat16)

    def float(self, *args: Any) -> Self:
        """As `to(torch.float32)`."""
        return self.to(torch.float32)

    def double(self) -> Self:
        """As `to(torch.float64)`, which is refused."""
        return self.to(torch.float64)

    def cpu(self) -> Self:
        """As `to("cpu")`."""
        return self.to(torch.device("cpu"))

    def cuda(self, *args: Any, **kwargs: Any) -> Self:
        """As `to("cuda")`."""
        return self.to(torch.device("cuda", *args))

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """What a pipeline enters around each half of guidance, for caches of float features: there is none here."""
        return nullcontext()

    @property
    def is_cache_enabled(self) -> bool:
        """Whether features are kept from step to step: no."""
        return False

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Write the float class's config.json, as a pipeline does with each of its components: no weights.

        The pipeline's folder is then opened with an integer denoiser in the place of the float one.

        Args:
            save_directory: of the denoiser in the pipeline's folder; made where it is not there.
            push_to_hub: refused.
            options: of weight files, of which there are none.

        Raises:
            OptionError: `push_to_hub`.
        """
        if push_to_hub:
            _refused("push_to_hub", _REFUSED["push_to_hub"])(self)
        self.__dict__["_float"].save_config(save_directory)
        _LOGGER.warning(
            f"{save_directory} has no float weights, for an integer denoiser has none; open the pipeline with "
            "IntegerDenoiser(path) in its place"
        )

    def __copy__(self) -> NoReturn:
        """Refused, as `__deepcopy__`."""
        raise OptionError("an integer denoiser cannot be copied; open the engine a second time")

    def __deepcopy__(self, memo: object) -> NoReturn:
        """Refused: the engine cannot be copied; a second one can be opened from the file."""
        raise OptionError("an integer denoiser cannot be copied; open the engine a second time")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refused: the engine cannot be pickled; another process opens it from the file."""
        raise OptionError("an integer denoiser cannot be pickled; give the other process the engine's path")

    def check_scheduler(self, scheduler: Any) -> None:
        """Refuse a scheduler that does not step the model that was trained; any other choice of it stays free.

        In a pipeline that you build yourself nothing else compares them: `pipe.unet.check_scheduler(pipe.scheduler)`.

        Args:
            scheduler: of diffusers.

        Raises:
            OptionError: noise levels, what the output stands for, or another value that weights are trained with
                differs from that of the scheduler which the record was calibrated with.
        """
        manifest = self.runner.manifest
        calibrated = None if manifest is None else manifest.scheduler_config
        other = {**scheduler.config, "_class_name": type(scheduler).__name__}
        advice = "take the scheduler of the pipeline that was quantized, or another class from_config of it"
        check_trained_values(differences(calibrated, other), f"the scheduler {type(scheduler).__name__}", advice)

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict: Any, prefix: str | None = "unet", **options: Any
    ) -> None:
        """Refused where LoRA holds factors of the denoiser; one of the text encoder alone changes nothing here.

        Args:
            pretrained_model_name_or_path_or_dict: as a pipeline gives it, factors by name.
            prefix: of the denoiser's in them.
            options: of the loading.

        Raises:
            OptionError: it has some, or may have.
        """
        given = pretrained_model_name_or_path_or_dict
        if not (isinstance(given, dict) and given and prefix) or any(name.startswith(f"{prefix}.") for name in given):
            _refused("load_lora_adapter", _LORA)(self)

    def unload_lora(self) -> None:
        """It computes without LoRA already; the text encoder's is unloaded by the pipeline."""

    disable_lora = enable_lora = unload_lora

    def close(self) -> None:
        """Close the engine, unless it was given open."""
        if self._owned:
            self.runner.close()

    def __getattr__(self, name: str) -> Any:
        """What the float class has under this name: a number, a setting, a submodule without weights."""
        if name.startswith("__") or "_float" not in self.__dict__:
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
                f"integer denoiser has none: {_FIXED}"
            )
        return found


def _refused(name: str, why: str) -> Callable[..., NoReturn]:
    """A method of diffusers' models that an engine has no use for."""

    def refuse(self: IntegerDenoiser, *args: Any, **kwargs: Any) -> NoReturn:
        raise OptionError(f"got {name} for an integer denoiser, which cannot do that: {why}")

    refuse.__name__, refuse.__qualname__ = name, f"IntegerDenoiser.{name}"
    refuse.__doc__ = f"Refused: {why}."
    return refuse


for _name, _why in _REFUSED.items():
    setattr(IntegerDenoiser, _name, _refused(_name, _why))
