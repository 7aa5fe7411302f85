"""Running counts of what was compared in a layer, and the first value that is not what the numerics say."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first value that is not what the numerics say.

    Attributes:
        layer: module path.
        part: index of the input-channel slice.
        tensor: `code`, `accumulator` or `output`.
        bucket: step bucket of the sample.
        timestep: its calibrated timestep.
        coordinate: index in the tensor without the sample axis: (channel, row, column) for a convolution.
        got: the engine's value.
        expected: the value by the numerics.
        where: `engine` or `probe` (a piece of the engine fed with extreme values).
    """

    layer: str
    part: int
    tensor: str
    bucket: int
    timestep: float
    coordinate: tuple[int, ...]
    got: float
    expected: float
    where: str = "engine"

    def text(self) -> str:
        """One line for a person."""
        source = "" if self.where == "engine" else ", probed with extreme values"
        return (
            f"layer {self.layer}, step {self.bucket} (timestep {self.timestep:g}){source}: {self.tensor} at "
            f"{self.coordinate} is {self.got:g}, expected {self.expected:g}"
        )


@dataclass(kw_only=True)
class Tally:
    """Running counts of one layer at one step bucket."""

    samples: int = 0
    codes: int = 0
    code_differences: int = 0
    max_code_difference: int = 0
    accumulators: int = 0
    accumulator_differences: int = 0
    max_accumulator_difference: float = 0
    largest_accumulator: float = 0
    max_output_difference: float = 0
    output_codes: int = 0
    output_code_differences: int = 0
    max_output_code_difference: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing differed."""
        return not (self.code_differences or self.accumulator_differences)


@dataclass(kw_only=True)
class LayerTally:
    """Running results of one layer: by step bucket in the engine, and of the probe.

    Attributes:
        steps: by bucket, from runs of the whole engine.
        timesteps: calibrated timestep of each of those buckets.
        probe: from runs of the layer's piece of the engine with extreme inputs.
        first: first difference.
        problems: why something could not be compared.
    """

    steps: dict[int, Tally] = field(default_factory=dict)
    timesteps: dict[int, float] = field(default_factory=dict)
    probe: Tally = field(default_factory=Tally)
    first: Difference | None = None
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Remember a reason once."""
        if text not in self.problems:
            self.problems.append(text)
