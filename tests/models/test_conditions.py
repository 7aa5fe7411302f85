"""Values of inputs that nobody recorded: a table by name, masks with their ends cut, whole numbers in their limits."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.models import default_call
from dq_deploy.models.conditions import condition_names, label_limits, random_conditions
from dq_deploy.record import Call, CallInput

CALL = Call(
    inputs=(
        CallInput(name="hidden_states", dtype="float32", shape=("B", 4, "height", "width")),
        CallInput(name="encoder_attention_mask", dtype="int64", shape=("B", "tokens")),
        CallInput(name="class_labels", dtype="int64", shape=("B",), limits=(0, 2)),
        CallInput(name="added_cond_kwargs.resolution", dtype="float32", shape=("B", 2)),
        CallInput(name="added_cond_kwargs.time_ids", dtype="float32", shape=("B", 5)),
        CallInput(name="img_ids", dtype="float32", shape=("image_tokens", 3)),
    ),
    sizes={"height": 4, "width": 6, "tokens": 9, "image_tokens": 6},
    outputs={"output": ("B", 4, "height", "width")},
)


def test_each_input_has_values_that_a_model_knows() -> None:
    made = random_conditions(CALL, 8, np.random.default_rng(0))
    mask = made["encoder_attention_mask"]
    lengths = mask.sum(axis=1)
    assert mask.dtype == np.int64
    assert lengths[0] == 9
    assert len(set(lengths.tolist())) > 1
    assert lengths.min() > 0
    assert (np.diff(mask, axis=1) <= 0).all()
    assert set(made["class_labels"].tolist()) <= {0, 1, 2}
    np.testing.assert_array_equal(made["added_cond_kwargs.resolution"][0], [32, 48])
    np.testing.assert_array_equal(made["time_ids"][0], [32, 48, 0, 0, 6])
    np.testing.assert_array_equal(made["img_ids"][:, 1:], [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])


@pytest.mark.parametrize(
    ("config", "limits", "conditions"),
    [
        ({"_class_name": "DiTTransformer2DModel", "num_embeds_ada_norm": 10}, (0, 10), []),
        ({"_class_name": "UNet2DModel", "sample_size": 8, "num_class_embeds": 3}, (0, 2), []),
        ({"_class_name": "UNet2DModel", "sample_size": 8, "class_embed_type": "timestep"}, (0, 999), []),
        ({"_class_name": "UNet2DModel", "sample_size": 8, "class_embed_type": "identity"}, None, ["class_labels"]),
        ({"_class_name": "UNet2DModel", "sample_size": 8}, None, []),
        (
            {"_class_name": "PixArtTransformer2DModel", "sample_size": 8},
            None,
            ["encoder_hidden_states", "encoder_attention_mask"],
        ),
    ],
)
def test_classes_are_told_from_conditions_by_the_call(config, limits, conditions) -> None:
    call = default_call(config)
    assert label_limits(call) == limits
    assert condition_names(call) == conditions
