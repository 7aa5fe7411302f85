"""Denoisers of many diffusers classes run natively: nothing is refused, floats are torch's, integers the numerics'."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.models import Denoiser, default_call, example_inputs
from dq_deploy.native.runner import NativeRunner
from tests.native.denoisers import TINY, Tiny
from tests.native.programs import Case
from tests.native.test_runner import compared, torch_output
from tests.tiny import random_record

TOLERANCE = 1e-5
EXPECTED_IN_NUMPY = {
    "text, masked": {"sin", "cos", "_scaled_dot_product_flash_attention_for_cpu"},
    "deepfloyd": {"sin", "cos", "mean.dim", "bmm", "_softmax"},
    "odd size": {"sin", "cos", "upsample_nearest2d"},
    "control": {"sin", "cos"},
    "dit": {"sin", "cos", "embedding"},
    "pixart, conditions": {"sin", "cos", "_scaled_dot_product_flash_attention_for_cpu"},
    "flux dev": {"sin", "cos", "inverse_rms", "_to_copy", "clone", "mul.Tensor"},
}


class ClassCase(Case):
    """A class of diffusers, none of its layers quantized."""

    def __init__(self, tiny: Tiny) -> None:
        self._tiny = tiny
        inputs = {name: (shape, "float32" if d == "mask" else d) for name, (shape, d) in tiny.inputs.items()}
        super().__init__(tiny.module(), inputs, step=tiny.step)

    def feeds(self, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Random inputs: masks of ones and zeros, whole labels and places."""
        rng = np.random.default_rng(seed)
        feeds = super().feeds(batch, seed)
        for name, (_, dtype) in self._tiny.inputs.items():
            if dtype == "mask":
                feeds[name] = (rng.random(feeds[name].shape) > 0.4).astype(np.float32)
                feeds[name][:, 0] = 1
            elif dtype == "int64" or name.endswith("_ids"):
                feeds[name] = rng.integers(0, 5, feeds[name].shape).astype(feeds[name].dtype)
        last = self._tiny.last_timestep
        return feeds | {"timestep": np.linspace(last / 9, last, batch).astype(np.float32)}

    def in_numpy(self) -> set[str]:
        """Names of the operations that no kernel does."""
        return {op[3]["function"].removesuffix(".default") for op in self.joined["ops"] if op[0] == "host"}


@pytest.mark.parametrize("name", EXPECTED_IN_NUMPY)
def test_the_output_is_torchs_and_what_numpy_does_is_known(name):
    case = ClassCase(TINY[name])
    assert case.in_numpy() == EXPECTED_IN_NUMPY[name]
    assert case.difference((1, 3)) < TOLERANCE


@pytest.mark.parametrize("name", ["plain", "sdxl", "deepfloyd", "dit", "pixart", "sd3"])
def test_no_float_value_of_a_sample_depends_on_the_batch(name):
    """Kernels that take few rows in another way than many would sum in another order, and a code flips now and then."""
    case = ClassCase(TINY[name])
    executor, feeds = case.executor(), case.feeds(9)
    alone = [executor.run({key: value[i : i + 1] for key, value in feeds.items()})["output"].copy() for i in range(9)]
    for batch in (2, 5, 7, 8, 9):
        together = executor.run({key: value[:batch] for key, value in feeds.items()})["output"]
        assert [i for i in range(batch) if together[i].tobytes() != alone[i][0].tobytes()] == []
    executor.close()


def denoiser_of(tiny: Tiny) -> Denoiser:
    module = tiny.module()
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in module.config.items() if not k.startswith("_")}
    config = {"_class_name": tiny.name, **config}
    return Denoiser(
        family=tiny.name,
        module=module,
        config=config,
        call=default_call(config, {"tokens": 5, "image_tokens": 16}),
        scheduler_config=None,
        source="random weights",
        source_sha256="0" * 64,
    )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("sd3.5", {"height": 4, "width": 6, "tokens": 3}), ("flux dev", {"image_tokens": 9, "tokens": 4})],
)
def test_integer_layers_of_transformers_are_the_numerics_at_sizes_never_seen(name, sizes):
    tiny = TINY[name]
    denoiser = denoiser_of(tiny)
    record = random_record(denoiser)
    with NativeRunner(record, threads=1) as runner:
        for batch, chosen in ((1, {}), (3, sizes)):
            feeds = example_inputs(denoiser.call, batch, 0, chosen)
            feeds["timestep"][:] = np.linspace(tiny.last_timestep / 9, tiny.last_timestep, batch)
            output, layers, wrong = compared(record, runner, feeds)
            assert (layers, wrong) == (len(record.layers), 0)
            want = torch_output(record, feeds)
            assert np.abs(output - want).max() <= 0.02 * np.abs(want).max()  # codes at ties may flip
