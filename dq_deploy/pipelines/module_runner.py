"""A torch module behind the interface of the engines: the simulation of a record in a denoiser's place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.models import denoiser_outputs
from dq_deploy.numerics.arrays import Array


class ModuleRunner(Runner):
    """Runs a torch module on the CPU as an engine would: named arrays in, named arrays out."""

    engine = "torch"

    def __init__(self, module: torch.nn.Module, manifest: EngineManifest) -> None:
        """Take a module.

        Args:
            module: a denoiser of diffusers or the simulation of a record.
            manifest: says its class, its configuration and its inputs.
        """
        super().__init__(manifest, finite_check=True)
        self.inputs, self.outputs = (
            tuple(TensorSpec(name=e.name, dtype=np.dtype(e.dtype), shape=e.shape) for e in entries)
            for entries in (manifest.inputs, manifest.outputs)
        )
        self.module = module

    @property
    def version(self) -> str:
        """Of torch."""
        return str(torch.__version__)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            given = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
            outputs = denoiser_outputs(self.module, given)
        return {spec.name: value.float().numpy() for spec, value in zip(self.outputs, outputs, strict=True)}

    def _free(self) -> None:
        del self.module
