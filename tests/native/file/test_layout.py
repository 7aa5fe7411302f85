"""The bytes of a program file: the same each time, read by mapping them, refused where one was changed."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from dq_deploy.errors import FileProblemError
from dq_deploy.native.file.layout import ALIGNMENT, MAGIC, HashCheck, MappedFile, read_file, write_file

BLOCKS = {"b": np.arange(5, dtype=np.float32), "a": np.ones((2, 3), np.int8), "c": np.array([True, False])}


def checked(path) -> MappedFile:
    """The file with all of its blocks compared."""
    mapped = read_file(path)
    HashCheck(mapped).finish()
    return mapped


@pytest.fixture
def path(tmp_path):
    write_file(tmp_path / "x.dqn", {"k": [1, {"B": 2}]}, BLOCKS)
    return tmp_path / "x.dqn"


def test_what_was_written_is_read_aligned_and_read_only(path):
    mapped = read_file(path)
    assert mapped.header == {"k": [1, {"B": 2}]}
    for name, array in BLOCKS.items():
        got = mapped.blocks[name]
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype
        assert got.ctypes.data % ALIGNMENT == 0
        assert not got.flags.writeable


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    write_file(tmp_path / "y.dqn", {"k": [1, {"B": 2}]}, dict(reversed(BLOCKS.items())))
    assert path.read_bytes() == (tmp_path / "y.dqn").read_bytes()


def test_every_flipped_byte_is_refused(path):
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        with pytest.raises(FileProblemError, match=re.escape(str(path))):
            checked(path)


@pytest.mark.parametrize("length", [0, 5, 47, 60, 200, -1])
def test_a_file_that_is_cut_off_or_longer_is_refused(path, length):
    whole = path.read_bytes()
    path.write_bytes(whole[:length] if length >= 0 else whole + b"x")
    with pytest.raises(FileProblemError, match="copy the file again, or export the record again"):
        read_file(path)


def rewritten(path, old, new):
    """The file with a piece of its header replaced, and the hash of the header made anew."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    text = whole[48 : 48 + length].replace(old, new)
    head = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + whole[48 + length + (-(48 + length)) % ALIGNMENT :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"offset":64', b'"offset":0'),  # blocks overlap
        (b'"offset":64', b'"offset":-64'),
        (b'"offset":64', b'"offset":true'),
        (b"[2,3]", b"[2,300000]"),
        (b"[2,3]", b"[2,-3]"),
        (b"[2,3]", b"[1099511627775,1099511627775,1099511627775]"),
        (b'"int8"', b'"object"'),
        (b'"bool"', b'"int64"'),
        (b'"k":', b'"k":NaN,"k":'),
        (b'"blocks":', b'"block":'),
        (b"{", b"["),
    ],
)
def test_a_header_with_blocks_that_cannot_be_is_refused_though_its_hash_fits(path, old, new):
    rewritten(path, old, new)
    with pytest.raises(FileProblemError) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_weights_are_not_compared_where_that_is_not_asked(path):
    whole = bytearray(path.read_bytes())
    whole[-60] ^= 1  # in block b
    path.write_bytes(bytes(whole))
    with pytest.raises(FileProblemError, match="by its hash"):
        checked(path)
    read_file(path)


def test_a_truth_that_is_neither_is_refused(tmp_path):
    write_file(tmp_path / "x.dqn", {}, {"c": np.array([7, 0], np.uint8).view(np.bool_)})
    with pytest.raises(FileProblemError, match="neither true nor false"):
        read_file(tmp_path / "x.dqn")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileProblemError, match="does not exist"):
        read_file(tmp_path / "none.dqn")
    with pytest.raises(FileProblemError, match="is a folder"):
        read_file(tmp_path)
