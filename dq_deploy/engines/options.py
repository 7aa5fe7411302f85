"""How each engine is opened: one dataclass an engine, which `open_engine` fills from its keyword arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dq_deploy.errors import OptionError

ATTENTION = ("float32", "bf16", "int8")
"""What the native engine on a CPU may compute attention's two products in; float32 unless it is asked for another.
int8 needs a record with quantizers for them; attentions of it that have none stay float32."""


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeOptions:
    """Options of ONNX Runtime.

    Attributes:
        threads: of one run; None is the engine's choice.
        finite_check: refuse NaN and infinity in inputs and outputs.
        optimized_model_path: where to write the graph that really runs.
        optimize: False runs each node as the file has it.
    """

    threads: int | None = None
    finite_check: bool = True
    optimized_model_path: Path | None = None
    optimize: bool = True


@dataclass(frozen=True, kw_only=True)
class OpenVinoOptions:
    """Options of OpenVINO; as those of ONNX Runtime, but that its optimizations cannot be left out."""

    threads: int | None = None
    finite_check: bool = True
    optimized_model_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of a plan.

    Attributes:
        finite_check: refuse NaN and infinity in inputs and outputs.
        hash_check: refuse a file whose content is not what was written.
    """

    finite_check: bool = True
    hash_check: bool = True


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    """Options of the native engine.

    Attributes:
        threads: of one run; None takes one for each CPU this process may use.
        isa: instruction set; None takes the best there is.
        device: one of `dq_deploy.native.devices.DEVICES`.
        attention: one of `ATTENTION`; None is float32. On a GPU attention is of the float type of the rest.
        finite_check: refuse NaN and infinity in inputs and outputs.
        hash_check: refuse a file whose content is not what was written.
    """

    threads: int | None = None
    isa: str | None = None
    device: str = "auto"
    attention: str | None = None
    finite_check: bool = True
    hash_check: bool = True

    def __post_init__(self) -> None:
        """Check the precision.

        Raises:
            OptionError: there is none of this name.
        """
        if self.attention is not None and self.attention not in ATTENTION:
            raise OptionError(f"attention is {self.attention!r}, expected one of {', '.join(ATTENTION)}")

    @property
    def wanted_device(self) -> str:
        """Where it shall run: threads, an instruction set or attention's precision are asked of a CPU."""
        asked_of_cpu = self.isa or self.threads or self.attention
        return "cpu" if self.device == "auto" and asked_of_cpu else self.device
