from __future__ import annotations

import pytest
import torch

from dq_deploy.errors import FileProblemError
from dq_deploy.quality import inception, load_extractor
from tests.quality.images import noisy_pair


@pytest.fixture(scope="module")
def weights():
    """Zeros of the right names and shapes, without the counters that old files lack."""
    with torch.device("meta"):
        shapes = inception.FidInception().state_dict()
    return {n: torch.zeros(t.shape) for n, t in shapes.items() if not n.endswith("num_batches_tracked")}


def test_the_network_has_the_parameters_of_the_published_one(weights):
    learned = {n: t for n, t in weights.items() if "running" not in n}
    # Inception-v3 without its auxiliary head and with 1008 classes, counted on the published network
    assert sum(t.numel() for t in learned.values()) == 23_850_960
    assert weights["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert weights["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert weights["fc.weight"].shape == (1008, 2048)


def test_mean_pools_leave_the_padding_out():
    assert (inception._mean_pool(torch.ones(1, 1, 4, 4)) == 1).all()


def test_only_the_file_with_the_published_hash_gives_a_fid(weights, tmp_path, monkeypatch):
    path = tmp_path / "inception.pth"
    torch.save(weights, path)
    unverified = load_extractor(f"inception:{path}")
    assert unverified.frechet_name == "FD-inception (unverified weights)"
    assert "KID" not in unverified.kernel_name
    monkeypatch.setattr(inception, "sha256_of_file", lambda _: inception.FID_SHA256_PREFIX + 56 * "0")
    verified = load_extractor(f"inception:{path}")
    assert (verified.frechet_name, verified.kernel_name) == ("FID", "KID")
    images, _ = noisy_pair(1, channels=3)
    features, maps = verified.outputs(images)
    assert features.shape == (1, 2048)
    assert [m.shape[1:3] for m in maps] == [(64, 147), (192, 71), (288, 35), (768, 17), (2048, 8)]


def test_files_that_do_not_fit_are_one_clear_error(weights, tmp_path):
    path = tmp_path / "wrong.pth"
    for content in (b"not weights", [1, 2], {"fc.weight": 1}):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(FileProblemError, match="6726825d") as found:
            load_extractor(f"inception:{path}")
        assert "\n" not in str(found.value)
    without = {n: t for n, t in weights.items() if n != "Mixed_6a.branch3x3.conv.weight"}
    for wrong in (without, weights | {"more": torch.zeros(1)}, weights | {"fc.bias": torch.zeros(1000)}):
        with pytest.raises(FileProblemError, match="1 tensors"):
            inception.inception_from_weights(wrong, path)
