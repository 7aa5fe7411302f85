"""Classes of diffusers that need more than the rules for all; each file says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def adapted(module: torch.nn.Module) -> torch.nn.Module:
    """A module of diffusers as the other rooms can run it; what stands in it is changed in place.

    Raises:
        ModelError: it cannot be.
    """
    name = type(module).__name__
    if name == "QwenImageTransformer2DModel":
        from dq_deploy.models.families.qwen_image import with_angles

        return with_angles(module)
    if name == "UNetMotionModel":
        from dq_deploy.models.families.motion import with_text_a_sample

        return with_text_a_sample(module)
    if any(type(child).__name__ == "Conv1d" for child in module.modules()):
        from dq_deploy.models.families.stand_in import with_rows

        return with_rows(module)
    return module
