"""The float module behind the Runner interface: the control that a pipeline around an engine changes nothing."""

from __future__ import annotations

import numpy as np
import torch

from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.models import denoiser_outputs, input_specs, output_specs


def specs(values):
    return tuple(TensorSpec(name=s.name, dtype=np.dtype(s.dtype), shape=tuple(s.shape)) for s in values)


class FloatRunner(Runner):
    """The float module itself behind the Runner interface: what it draws must be diffusers' own, bit for bit."""

    engine = "torch"
    version = torch.__version__

    def __init__(self, denoiser):
        manifest = EngineManifest(
            target="torch",
            mode="exact",
            family=denoiser.family,
            model_config=denoiser.config,
            scheduler_config=denoiser.scheduler_config,
            inputs=(),
            outputs=(),
            constants=dict(denoiser.call.constants) or None,
            timesteps=(),
            step_edges=(),
            layers=(),
        )
        super().__init__(manifest, finite_check=True)
        self.inputs, self.outputs = specs(input_specs(denoiser.call)), specs(output_specs(denoiser.call))
        self.module, self.constants = denoiser.module, denoiser.call.constants

    def _run(self, feeds):
        with torch.no_grad():
            given = {name: torch.from_numpy(value) for name, value in feeds.items()}
            outputs = denoiser_outputs(self.module, given, self.constants)
        return {spec.name: value.numpy().copy() for spec, value in zip(self.outputs, outputs, strict=True)}

    def _free(self):
        pass
