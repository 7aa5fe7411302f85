"""Checkpoints are read as tensors: nothing in them runs, and nothing larger than the file is made."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import pytest
import torch

from dq_deploy.errors import FileProblemError
from dq_deploy.readers.tensors import Tensors, load_checkpoint, load_float_file

TENSORS = {"model.a": torch.arange(4.0), "model.b": torch.ones(2, 3)}


def saved(path, value):
    torch.save(value, path)
    return path


def test_tensors_and_one_level_of_dicts_are_read(tmp_path):
    held = load_checkpoint(saved(tmp_path / "a.pth", {"plain": TENSORS["model.a"], "inner": {**TENSORS, "epoch": 3}}))
    assert np.array_equal(held["plain"], np.arange(4, dtype=np.float32))
    assert set(held["inner"]) == set(TENSORS)
    assert held["inner"]["model.b"].dtype == np.float32


def test_half_precision_becomes_float32(tmp_path):
    held = load_checkpoint(saved(tmp_path / "a.pth", {"a": torch.ones(3, dtype=torch.bfloat16)}))
    assert held["a"].dtype == np.float32


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_never_run(tmp_path):
    path = saved(tmp_path / "evil.pth", {"a": Touch(tmp_path / "ran")})
    with pytest.raises(FileProblemError, match="holds Python objects besides tensors; nothing was executed"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path / "a.pth", TENSORS)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FileProblemError, match="is truncated or damaged; copy it again"):
        load_checkpoint(path)


def test_a_tensor_that_declares_more_than_it_stores_is_refused(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": torch.zeros(1).expand(2**40)})
    with pytest.raises(FileProblemError, match=f"a declares {2**40} elements and stores fewer"):
        load_checkpoint(path)


def test_many_tensors_of_one_storage_are_refused_before_they_are_copied(tmp_path):
    shared = torch.ones(10_000, dtype=torch.float16)
    path = saved(tmp_path / "a.pth", {f"layer{i}": shared for i in range(50)})
    with pytest.raises(FileProblemError, match=r"declares tensors of 1000000 bytes and stores \d+; the file is not a"):
        load_checkpoint(path)
    tied = load_checkpoint(saved(tmp_path / "b.pth", {"a": shared, "b": shared}))
    assert (tied["a"] == tied["b"]).all()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10**7)
    with pytest.raises(FileProblemError, match=r"declares 10000000 bytes .* nothing was unpacked"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"not a file of torch", "is no archive of torch.save"), (None, "does not exist"), ("folder", "is a folder")],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, match):
    path = tmp_path / "a.pth"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(FileProblemError, match=match):
        load_checkpoint(path)


def test_a_list_is_no_checkpoint(tmp_path):
    with pytest.raises(FileProblemError, match="holds a list, expected a dict of named tensors"):
        load_checkpoint(saved(tmp_path / "a.pth", [torch.ones(1)]))


def test_a_float_model_may_lie_under_state_dict(tmp_path):
    state = load_float_file(saved(tmp_path / "a.ckpt", {"state_dict": TENSORS, "epoch": 7}))
    assert set(state) == set(TENSORS)
    with pytest.raises(FileProblemError, match="holds no tensors by name"):
        load_float_file(saved(tmp_path / "b.ckpt", {"epoch": 7}))
    (tmp_path / "c.safetensors").write_bytes(b"\1\0\0")
    with pytest.raises(FileProblemError, match="is truncated or damaged"):
        load_float_file(tmp_path / "c.safetensors")


def test_what_nobody_asked_for_is_known():
    tensors = Tensors({"a": np.ones(1), "b": np.ones(1)}, "file")
    tensors.take("a")
    assert tensors.unasked() == ["b"]
    with pytest.raises(FileProblemError, match="file lacks c"):
        tensors.take("c")
