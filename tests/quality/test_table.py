from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dq_deploy.errors import InputError, OptionError
from dq_deploy.quality import (
    PSNR_CAP_DB,
    frechet_distance,
    interval_of_paired_difference,
    psnr_db,
    quality_baseline,
    quality_row,
    row_of,
)
from tests.quality.images import noisy_pair, tiny_extractor


def sign_of_mean(images):
    return (images.mean((1, 2, 3)) > 0).astype(np.int64)


@pytest.fixture(scope="module")
def images():
    return noisy_pair(40)


@pytest.fixture(scope="module")
def real():
    return noisy_pair(200)[1]


@pytest.fixture(scope="module")
def baseline(images, real):
    labels = sign_of_mean(images[1])
    return quality_baseline(images[1], real=real, labels=labels, recognise=sign_of_mean, extractor=tiny_extractor())


def test_a_row_holds_every_measure(baseline, images):
    x, reference = images
    row = row_of(baseline, x)
    assert row.psnr_db.mean == pytest.approx(psnr_db(x, reference, data_range=2).mean())
    extractor = tiny_extractor()
    assert row.frechet_to_reference == pytest.approx(
        frechet_distance(extractor.features(x), extractor.features(reference))
    )
    assert row.frechet_images == row.real_against_real.count == 40
    assert row.recognised_of_reference.mean == 1
    assert row.recognised_difference.mean == pytest.approx(row.recognised.mean - 1)
    assert row.not_measured == {}
    assert None not in vars(row).values()
    assert {len(v) for v in vars(row.per_image).values()} == {40}


def test_the_row_of_the_reference_itself_is_perfect(baseline, images):
    row = row_of(baseline, images[1])
    assert (row.psnr_db.mean, row.identical) == (PSNR_CAP_DB, 40)
    assert row.psnr_of_mean_error_db is None
    assert row.ssim.mean == pytest.approx(1)
    assert row.feature_distance.mean == 0
    assert row.frechet_to_reference == pytest.approx(0, abs=1e-8)
    assert row.frechet == row.frechet_of_reference
    assert row.frechet_difference.high == row.recognised_difference.high == 0


def test_some_equal_images_leave_the_mean_finite(images):
    x, reference = images[0].copy(), images[1]
    x[:10] = reference[:10]
    row = quality_row(x, reference, extractor=None)
    assert (row.identical, row.per_image.psnr_db[:10]) == (10, (PSNR_CAP_DB,) * 10)
    error = np.square(x.astype(float) - reference).mean()
    assert row.psnr_of_mean_error_db == pytest.approx(10 * math.log10(4 / error))


def test_a_row_is_json_and_so_are_its_images(baseline, images):
    row = row_of(baseline, images[1])
    text = json.dumps(row.as_json(), allow_nan=False)
    assert json.loads(text)["frechet"]["mean"] == row.frechet.mean
    assert "per_image" not in json.loads(text)
    assert len(json.loads(json.dumps(row.as_json(per_image=True)))["per_image"]["ssim"]) == 40


def test_columns_are_named_after_the_extractor_and_have_intervals(baseline, images):
    columns = row_of(baseline, images[0]).columns()
    assert "FD-tiny to real" in columns
    assert "feature distance (tiny)" in columns
    assert not any("FID" in heading or "LPIPS" in heading for heading in columns)
    assert columns["PSNR, dB"].count(",") == 1


def test_what_is_not_measured_has_a_reason_and_no_column(images):
    row = quality_row(images[0][..., :8], images[1][..., :8], extractor=None)
    assert set(row.not_measured) == {
        "ssim",
        "feature_distance",
        "frechet_to_reference",
        "frechet",
        "kernel",
        "recognised",
    }
    assert list(row.columns()) == ["PSNR, dB"]
    without_real = quality_row(*images, extractor=tiny_extractor(maps=False))
    assert without_real.not_measured["frechet"] == "no real images"
    assert without_real.not_measured["feature_distance"] == "tiny gives no feature maps"
    assert without_real.frechet_to_reference > 0


def test_few_real_images_make_both_distances_smaller_sets(images, real):
    row = quality_row(*images, real=real[:30], extractor=tiny_extractor())
    assert row.frechet_images == row.real_against_real.count == row.frechet.count == 15


def test_the_same_seed_gives_the_same_row_and_rows_pair_up(baseline, images):
    row = row_of(baseline, images[0])
    assert row == row_of(baseline, images[0])
    worse = row_of(baseline, np.clip(images[0] * 1.2, -1, 1))
    difference = interval_of_paired_difference(worse.per_image.psnr_db, row.per_image.psnr_db)
    assert difference.high < 0


def test_input_that_does_not_fit_is_refused(baseline, images, real):
    x, reference = images
    with pytest.raises(InputError, match="as the reference"):
        row_of(baseline, x[:5])
    with pytest.raises(InputError, match="not finite"):
        row_of(baseline, np.full_like(x, np.inf))
    with pytest.raises(InputError, match="at least two"):
        quality_row(x[:1], reference[:1], extractor=None)
    with pytest.raises(InputError, match="only one of"):
        quality_row(x, reference, labels=np.zeros(40, int), extractor=None)
    with pytest.raises(InputError, match="one integer for each"):
        quality_row(x, reference, labels=np.zeros(3, int), recognise=sign_of_mean, extractor=None)
    with pytest.raises(InputError, match="one an image"):
        quality_row(x, reference, labels=np.zeros(40, int), recognise=lambda x: x[:3, 0, 0, 0], extractor=None)
    with pytest.raises(InputError, match="7 real images"):
        quality_row(x, reference, real=real[:7], extractor=tiny_extractor())
    with pytest.raises(OptionError, match="lpips"):
        quality_row(x, reference, extractor="lpips")
