"""The stages of QuEST's finetuning: which layers' weights and activation quantizers each trains."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from dq_deploy.errors import OptionError
from dq_deploy.methods.options import QuestOptions

STAGES = {
    "time-embedding": ("*.time_emb_proj", "*blocks.*.norm*.linear"),
    "attention": (
        *("*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.net.*"),
        # transformers that attend to text and picture together, and their blocks for both
        *("*.add_?_proj", "*.to_add_out", "*.ff_context.net.*", "*.proj_mlp", "single_transformer_blocks.*.proj_out"),
    ),
}
"""Patterns of the layers whose weights a stage trains, in the order of the stages.

The step enters a residual block by its time projection, and a block of a transformer by the linear layer of its norms.
"""

TIME = "time-embedding"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage trains.

    Attributes:
        name: of `STAGES`.
        layers: whose weights it trains.
        scales: layers whose activation quantizers it trains.
        local: whether the errors of its layers are in the loss.
    """

    name: str
    layers: tuple[str, ...]
    scales: frozenset[str]
    local: bool


def stages_of(names: Iterable[str], options: QuestOptions) -> list[Stage]:
    """The stages that the options leave in.

    Args:
        names: layers that can be trained.
        options: `without` parts.

    Raises:
        OptionError: stages are left in, but no loss.
    """
    known = list(names)
    chosen = [name for name in STAGES if options.uses(name)]
    if chosen and not (options.uses("global-loss") or options.uses("local-loss")):
        raise OptionError("without names global-loss and local-loss, expected one of them to be left in")
    found = []
    for stage in chosen:
        layers = _named(known, stage)
        scales = frozenset(layers) if stage == TIME else frozenset(known) - frozenset(_named(known, TIME))
        local = options.uses("local-loss") and (stage == TIME or not options.uses("global-loss"))
        if layers or (scales and options.uses("global-loss")):
            found.append(Stage(name=stage, layers=layers, scales=scales, local=local))
    return found


def _named(names: Iterable[str], stage: str) -> tuple[str, ...]:
    return tuple(n for n in names if any(fnmatch.fnmatchcase(n, p) for p in STAGES[stage]))
