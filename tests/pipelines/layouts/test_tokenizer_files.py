"""Tokenizers: files are copied, and what transformers 4 reads is made from what transformers 5 writes."""

from __future__ import annotations

import json

import pytest

from dq_deploy.errors import ModelError
from dq_deploy.pipelines.layouts.tokenizer_files import copy_files, write_slow_tokenizer


def test_files_are_copied_and_folders_are_not(tmp_path):
    source = tmp_path / "tokenizer"
    (source / "cache").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"\x00text")
    (source / "spiece.model").symlink_to(tmp_path / "blob")
    copy_files(source, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["spiece.model"]
    assert not (tmp_path / "copy" / "spiece.model").is_symlink()
    assert (tmp_path / "copy" / "spiece.model").read_bytes() == b"\x00text"


@pytest.mark.parametrize("merges", [["a b", "ab c"], [["a", "b"], ["ab", "c"]]])
def test_vocabulary_and_merges_of_clip_are_written_from_tokenizer_json(merges, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "ab": 1}, "merges": merges}}))
    write_slow_tokenizer(tmp_path, "CLIPTokenizer")
    assert json.loads((tmp_path / "vocab.json").read_text()) == {"a": 0, "ab": 1}
    assert (tmp_path / "merges.txt").read_text() == "#version: 0.2\na b\nab c\n"


def test_other_tokenizers_and_files_that_are_there_stay_as_they_are(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", 0]]}}))
    write_slow_tokenizer(tmp_path, "T5TokenizerFast")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    with pytest.raises(ModelError, match="has no vocab and merges"):
        write_slow_tokenizer(tmp_path, "CLIPTokenizer")
    (tmp_path / "vocab.json").write_text("{}")
    write_slow_tokenizer(tmp_path, "CLIPTokenizer")
    assert (tmp_path / "vocab.json").read_text() == "{}"
