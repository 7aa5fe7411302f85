"""The float model that the options of `dq-quantize` mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq_deploy.cli.text.quantize.arguments import QuantizeArguments
    from dq_deploy.models import Denoiser


def float_model(given: QuantizeArguments) -> Denoiser:
    """Load it.

    --height and --width are the sample's of a denoiser alone. Of a pipeline they are a start for a configuration
    without a size: what the pipeline is seen to do takes their place.

    Raises:
        ModelError: it cannot be loaded.
    """
    from dq_deploy.models import load_model

    return load_model(
        given.model, variant=given.variant, component=given.component, config=given.config, sizes=_sizes(given)
    )


def described_model(given: QuantizeArguments) -> Denoiser:
    """The same without weights, which need not be there.

    Raises:
        ModelError: its configuration is not usable.
    """
    from dq_deploy.models import describe_model

    return describe_model(given.model, component=given.component, config=given.config, sizes=_sizes(given))


def _sizes(given: QuantizeArguments) -> dict[str, int]:
    from dq_deploy.models.load.pipeline_folder import sizes_of_picture

    return sizes_of_picture(given.config or given.model, given.height, given.width)
