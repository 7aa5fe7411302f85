"""What each method is asked besides what is shared, with its defaults; the presets replace some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

from dq_deploy.errors import OptionError
from dq_deploy.methods.options.checks import check_values, choice, flag, number, whole
from dq_deploy.methods.options.shared import OwnChoices, SharedOptions, bits_pair

DILATION_BOUNDS = ("asymmetric", "symmetric")
POWER_OF_TWO_VOTES = ("one-vote", "per-group")
BLOCK_SIZES = (64, 128)

DEFAULT_METHOD = "dilatequant"

OPTION_NAMES = (
    *("method", "weight_bits", "activation_bits", "block_size", "steps", "step_groups", "static"),
    *("symmetric_activations", "asymmetric_weights", "keep", "layer_bits", "budget", "budget_widths", "split_skips"),
    *("activation_budget", "activation_budget_widths", "step_correction"),
    *("seed", "samples", "labels", "calibration_choice", "tdac_radius", "tdac_diversity", "memory_gib", "outputs"),
    *("without", "iterations", "batch", "lr_weight", "lr_bias", "lr_weight_scale", "lr_scale", "lr_zero_point"),
    *("lr_rounding", "rounding_penalty", "layer_loss", "activation_drop", "scaling_iterations", "lr_equivalent"),
    *("timestep_exponent", "power_of_two", "agreement", "finetune_iterations", "dilation_bound"),
    *("channel_scales", "attention", "damping", "rows_a_column", "second_order_start", "device"),
    *("finetune", "own_trajectories", "picture_weights", "picture_iterations"),
)
"""Every option of every method, in the order in which a record's provenance holds them."""


@dataclass(frozen=True, kw_only=True)
class MinmaxOptions(SharedOptions):
    """Ranges alone, the only method that makes weight-only layers.

    Attributes:
        block_size: input channels that share a scale in weight-only layers, one of `BLOCK_SIZES`.
        channel_scales: give each input channel a factor from its range, as SmoothQuant does (arXiv 2211.10438); how
            much of a range moves into the weights is searched for each layer.
    """

    method: ClassVar[str] = "minmax"
    parts: ClassVar[tuple[str, ...]] = ()
    has_float_activations: ClassVar[bool] = True

    block_size: int = choice(64, *BLOCK_SIZES)
    channel_scales: bool = flag(False)


@dataclass(frozen=True, kw_only=True)
class GptqOptions(SharedOptions):
    """GPTQ: ranges as minmax has them, weights rounded by second-order statistics of their inputs.

    Attributes:
        damping: added to the diagonal of the statistics, as a share of its mean.
        rows_a_column: input rows for each column of a layer's weight, or all where there are fewer.
    """

    method: ClassVar[str] = "gptq"
    parts: ClassVar[tuple[str, ...]] = (*("feedback", "float-targets", "bias", "scale-refit"),)

    damping: float = number(0.01, 1e-6, 10)
    rows_a_column: int = whole(16, 1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SharedOptions):
    """What every method that trains block by block reads.

    Attributes:
        iterations: training iterations a block.
        batch: training inputs an iteration, steps mixed.
        second_order_start: training begins at weights rounded as method gptq rounds them, not at the nearest codes.
        finetune: QuEST's finetuning follows the blocks; of QuEST itself it is a part anyway.
        finetune_iterations: iterations a stage of the finetuning.
        own_trajectories: each stage of the finetuning sees trajectories of the quantized model as it is by then.
        picture_weights: finetuning counts the error of each step by how far it moves the picture.
    """

    iterations: int = whole(200, 0, 1_000_000)
    batch: int = whole(32, 1, 4096)
    second_order_start: bool = flag(False)
    finetune: bool = flag(False)
    finetune_iterations: int = whole(200, 0, 1_000_000)
    own_trajectories: bool = flag(False)
    picture_weights: bool = flag(False)

    def __post_init__(self) -> None:
        """Check every value; see `SharedOptions`.

        Raises:
            OptionError: also where an option of the finetuning is given without one.
        """
        super().__post_init__()
        for name in ("own_trajectories", "picture_weights"):
            if getattr(self, name) and not (self.finetune or self.method == "quest"):
                raise OptionError(f"{name} was given without finetune, expected it, or method quest; or leave it out")


@dataclass(frozen=True, kw_only=True)
class AdaRoundOptions(TrainingOptions):
    """What methods read that learn the rounding of weights by AdaRound.

    Attributes:
        lr_rounding: Adam step of the rounding variables.
        rounding_penalty: weight of the pull towards whole codes, a mean over weights; 0 leaves it out.
    """

    lr_rounding: float = number(0.1, 0, 10)
    rounding_penalty: float = number(10.0, 0, 100)


@dataclass(frozen=True, kw_only=True)
class DilateQuantOptions(TrainingOptions):
    """DilateQuant: dilated weights, then everything is trained block by block.

    Attributes:
        lr_weight: Adam step of weights, in weight codes.
        lr_bias: of biases, relative to the output's spread.
        lr_weight_scale: of weight scales, relative.
        lr_scale: of activation scales, relative.
        lr_zero_point: of zero points, as a share of the code range.
        dilation_bound: `asymmetric` bounds a weight by its channel's own range end, `symmetric` by max|w|.
        channel_scales: as of minmax, in place of the dilation.
    """

    method: ClassVar[str] = "dilatequant"
    parts: ClassVar[tuple[str, ...]] = ("weight-dilation", "temporal-quantizer", "distillation")

    lr_weight: float = number(2e-2, 0, 10)
    lr_bias: float = number(1e-3, 0, 10)
    lr_weight_scale: float = number(1e-3, 0, 10)
    lr_scale: float = number(5e-3, 0, 10)
    lr_zero_point: float = number(5e-3, 0, 10)
    dilation_bound: str = choice("asymmetric", *DILATION_BOUNDS)
    channel_scales: bool = flag(False)


@dataclass(frozen=True, kw_only=True)
class DmqOptions(AdaRoundOptions):
    """DMQ: learned equivalent scaling, AdaRound, power-of-two scaled skips.

    Attributes:
        scaling_iterations: iterations a layer of learned equivalent scaling.
        lr_equivalent: Adam step of the logarithm of equivalent scales.
        timestep_exponent: how sharply losses of hard steps are weighted down (alpha in the paper).
        power_of_two: `one-vote` over all steps, or `per-group`, where all groups of steps must elect the same.
        agreement: share of samples that must agree on a power of two.
    """

    method: ClassVar[str] = "dmq"
    parts: ClassVar[tuple[str, ...]] = (
        *("learned-scaling", "timestep-weighting", "reconstruction", "power-of-two", "split-skips"),
    )
    own: ClassVar[OwnChoices] = OwnChoices(split_skips=True, asymmetric_weights=True)

    scaling_iterations: int = whole(200, 0, 1_000_000)
    lr_equivalent: float = number(1e-2, 0, 10)
    timestep_exponent: float = number(20.0, 0, 1000)
    power_of_two: str = choice("one-vote", *POWER_OF_TWO_VOTES)
    agreement: float = number(0.85, 0, 1)


@dataclass(frozen=True, kw_only=True)
class EdaDmOptions(AdaRoundOptions):
    """EDA-DM: calibration steps that stand for all, fine-grained reconstruction.

    Attributes:
        lr_scale: of activation scales, relative.
        layer_loss: weight of the errors of the layers inside a block (gamma in the paper).
        activation_drop: share of activation values left float while a block is trained.
    """

    method: ClassVar[str] = "eda-dm"
    parts: ClassVar[tuple[str, ...]] = (
        *("tdac", "fine-grained-loss", "reconstruction", "activation-drop", "split-skips"),
    )
    own: ClassVar[OwnChoices] = OwnChoices(static=True, split_skips=True, calibration_choice="tdac")

    lr_scale: float = number(5e-3, 0, 10)
    layer_loss: float = number(0.8, 0, 100)
    activation_drop: float = number(0.5, 0, 1)


@dataclass(frozen=True, kw_only=True)
class QuestOptions(AdaRoundOptions):
    """QuEST: a record of its own by AdaRound, or one that is given, finetuned in stages.

    Attributes:
        lr_weight: Adam step of the finetuned weights, in codes of 4 bits.
        lr_bias: of biases, relative to the output's spread.
        lr_weight_scale: of weight scales, relative.
        lr_scale: of activation scales, relative.
        lr_zero_point: of zero points, as a share of the code range.
        layer_loss: weight of the errors of the finetuned layers beside that of the output.
    """

    method: ClassVar[str] = "quest"
    parts: ClassVar[tuple[str, ...]] = ("reconstruction", "time-embedding", "attention", "global-loss", "local-loss")

    lr_weight: float = number(2e-2, 0, 10)
    lr_bias: float = number(1e-3, 0, 10)
    lr_weight_scale: float = number(1e-3, 0, 10)
    lr_scale: float = number(5e-3, 0, 10)
    lr_zero_point: float = number(5e-3, 0, 10)
    layer_loss: float = number(0.8, 0, 100)


_CLASSES: tuple[type[SharedOptions], ...] = (
    *(MinmaxOptions, GptqOptions, DilateQuantOptions, DmqOptions, EdaDmOptions, QuestOptions),
)

METHODS = tuple(options.method for options in _CLASSES)

PARTS = {options.method: options.parts for options in _CLASSES}
"""What each method is made of."""

_OPTIONS: dict[str, Field[Any]] = {option.name: option for options in _CLASSES for option in fields(options)}


def options_for(method: str = DEFAULT_METHOD, **values: Any) -> SharedOptions:
    """The options of one method, of that method's own type; what it does not read is checked and kept as `unused`.

    Args:
        method: one of `METHODS`.
        **values: options by name, of this method or another; what is left out has its default.

    Raises:
        OptionError: an unknown method or option, or a value out of range.
    """
    if method not in METHODS:
        raise OptionError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    check_names(values)
    chosen = _CLASSES[METHODS.index(method)]
    own = {option.name for option in fields(chosen)}
    unused = {name: value for name, value in values.items() if name not in own}
    check_values(_OPTIONS, unused)
    return chosen(**{name: value for name, value in values.items() if name in own}, unused=unused)


def check_names(names: Mapping[str, object]) -> None:
    """Refuse what is an option of no method.

    Raises:
        OptionError: names them.
    """
    unknown = set(names) - set(OPTION_NAMES)
    if unknown:
        raise OptionError(f"unknown option {', '.join(sorted(unknown))}, expected {', '.join(OPTION_NAMES)}")


def json_of_options(options: SharedOptions) -> dict[str, Any]:
    """Every option as JSON values by name, as a record's provenance holds them: also those of other methods."""
    values: dict[str, Any] = {name: option.default for name, option in _OPTIONS.items()}
    values |= options.unused
    values |= {option.name: getattr(options, option.name) for option in fields(options)}
    values["method"] = options.method
    values["layer_bits"] = {pattern: list(bits_pair(pattern, bits)) for pattern, bits in options.layer_bits.items()}
    return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in OPTION_NAMES}
