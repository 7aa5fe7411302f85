"""Damaged and hostile files give one clear error, and nothing in a file is executed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import save as save_tensors

from dq_deploy.errors import DqError, FileProblemError, RecordError
from dq_deploy.record import load_record, save_record

HEADER = "dq_deploy.record"
FORMS = ("pt", "safetensors")


class Exploding:
    """Writes a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (str(self.witness), "w"))


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_file_and_a_folder_are_named(tmp_path, form):
    with pytest.raises(FileProblemError, match="does not exist"):
        load_record(tmp_path / f"none.{form}")
    (tmp_path / f"folder.{form}").mkdir()
    with pytest.raises(FileProblemError, match=f"folder.{form}"):
        load_record(tmp_path / f"folder.{form}")


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_is_an_error(record, tmp_path, form):
    path = tmp_path / f"m.{form}"
    save_record(record, path)
    data = path.read_bytes()
    for length in [0, 1, 4, 8, 100, len(data) // 2, len(data) - 200, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FileProblemError, match=r"expected|copy"):
            load_record(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("before", "behind"), [(b"", b"x"), (b"", bytes(100)), (b"junk", b""), (b"PK", b"")])
def test_bytes_before_and_behind_a_record_are_an_error(record, tmp_path, form, before, behind):
    path = tmp_path / f"m.{form}"
    save_record(record, path)
    path.write_bytes(before + path.read_bytes() + behind)
    with pytest.raises(FileProblemError, match="copy"):
        load_record(path)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_byte_never_gives_anything_but_a_record_or_one_error(record, tmp_path, form, data):
    path = tmp_path / f"m.{form}"
    save_record(record, path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    message = str(path)
    try:
        load_record(path)
    except DqError as error:
        message = str(error)
    assert str(path) in message
    assert len(message) < 1000


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=300))
def test_a_random_file_is_not_a_record(tmp_path, form, noise):
    path = tmp_path / f"m.{form}"
    path.write_bytes(noise)
    with pytest.raises(FileProblemError):
        load_record(path)


def test_a_damaged_tensor_in_a_pt_file_is_found_by_its_checksum(record, tmp_path):
    path = tmp_path / "m.pt"
    save_record(record, path)
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack_from("<HH", content, entry.header_offset + 26)
    content[entry.header_offset + 30 + name_length + extra_length] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FileProblemError, match="damaged at archive/data/0"):
        load_record(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, protocol):
    witness, path = tmp_path / "ran", tmp_path / "m.pt"
    bomb = {HEADER: "{}", "tensor": Exploding(witness)}
    path.write_bytes(pickle.dumps(bomb, protocol=protocol))
    with pytest.raises(FileProblemError, match=r"executed|not a torch file"):
        load_record(path)
    torch.save(bomb, path, pickle_protocol=max(2, protocol))
    with pytest.raises(FileProblemError, match="nothing was executed"):
        load_record(path)
    torch.save(bomb, path, _use_new_zipfile_serialization=False)
    with pytest.raises(FileProblemError, match="nothing in it was executed"):
        load_record(path)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Exploding(witness))).close()  # the bomb is live
    assert witness.exists()


def test_the_refused_object_is_named(tmp_path):
    torch.save({HEADER: "{}", "x": Exploding(tmp_path / "ran")}, tmp_path / "m.pt")
    with pytest.raises(FileProblemError, match=r"Python object '_?io\.open'"):
        load_record(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "content", [{"conv.weight": torch.ones(2)}, torch.nn.Linear(2, 2).state_dict(), torch.ones(3), [1]]
)
def test_another_torch_file_is_not_a_record(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(FileProblemError, match=r"not a record|expected a record"):
        load_record(tmp_path / "m.pt")


def test_another_safetensors_file_is_not_a_record(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(save_tensors({"w": np.ones(2, np.float32)}))
    with pytest.raises(FileProblemError, match="not a record"):
        load_record(tmp_path / "m.safetensors")


def rezip(path, *, compress=zipfile.ZIP_STORED, extra=None, skip=None):
    """Write a torch archive again, entry by entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {e.filename: archive.read(e) for e in archive.infolist() if e.filename != skip}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in {**entries, **(extra or {})}.items():
            archive.writestr(name, content)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(record, tmp_path):
    path = tmp_path / "m.pt"
    save_record(record, path)
    rezip(path, compress=zipfile.ZIP_DEFLATED, extra={"archive/data/0": bytes(200 * 2**20)})
    assert path.stat().st_size < 2**20
    with pytest.raises(FileProblemError, match="nothing was unpacked"):
        load_record(path)


def test_archive_entries_that_share_their_bytes_are_refused(record, tmp_path):
    path = tmp_path / "m.pt"
    save_record(record, path)
    rezip(path, extra={"archive/data/900": bytes(2**20)})
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("archive/data/900")
        for i in range(100):  # a hundred names for the same megabyte
            alias = zipfile.ZipInfo(f"archive/data/{1000 + i}")
            alias.header_offset, alias.CRC = entry.header_offset, entry.CRC
            alias.file_size = alias.compress_size = entry.file_size
            archive.filelist.append(alias)
            archive.NameToInfo[alias.filename] = alias
        archive._didModify = True
    with pytest.raises(FileProblemError, match="nothing was unpacked"):
        load_record(path)


def test_a_torch_archive_without_its_parts_is_named(record, tmp_path):
    path = tmp_path / "m.pt"
    save_record(record, path)
    rezip(path, skip="archive/data/3")
    with pytest.raises(FileProblemError, match=r"lacks the archive entry archive/data/3"):
        load_record(path)
    rezip(path, skip="archive/data.pkl")
    with pytest.raises(FileProblemError, match=r"without data\.pkl"):
        load_record(path)


def rewrite_pickle(path, change):
    with zipfile.ZipFile(path) as archive:
        data = archive.read("archive/data.pkl")
    rezip(path, extra={"archive/data.pkl": change(data)})


def test_a_tensor_that_claims_more_than_its_bytes_is_refused(record, tmp_path):
    path = tmp_path / "m.pt"
    save_record(record, path)
    text = b"K\x03\x85"  # a shape (3,)
    rewrite_pickle(path, lambda data: data.replace(text, b"M\xff\xff\x85"))
    with pytest.raises(FileProblemError, match=r"does not match its|more than it holds"):
        load_record(path)
    save_record(record, path)
    rewrite_pickle(path, lambda data: data.replace(text, b"J\xff\xff\xff\x7f\x85"))
    with pytest.raises(FileProblemError, match="nothing was unpacked"):
        load_record(path)


def test_pickle_opcodes_that_reserve_memory_are_harmless(record, tmp_path):
    path = tmp_path / "m.pt"
    save_record(record, path)
    rewrite_pickle(path, lambda data: data[:3] + b"r\xff\xff\xff\xff" + data[3:])  # memo slot 2^32 - 1
    load_record(path)
    rewrite_pickle(path, lambda data: data[:2] + b"\x8e" + struct.pack("<Q", 2**60) + data[2:])  # bytes of 2^60
    with pytest.raises(FileProblemError, match="damaged pickle"):
        load_record(path)


def test_safetensors_headers_that_lie_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"

    def write(header, body=b"\0" * 8, length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    bad = [
        ({"a": {**entry, "data_offsets": [0, 2**62]}}, b"\0" * 8, None),
        ({"a": {**entry, "shape": [2**40, 2**40]}}, b"\0" * 8, None),
        ({"a": entry, "b": entry}, b"\0" * 8, None),
        ({"a": entry}, b"", None),
        ({"a": entry}, b"\0" * 8, 2**63),
        (b"{" * 10000, b"", None),
        (b"not json", b"", None),
    ]
    for header, body, length in bad:
        write(header, body, length)
        with pytest.raises(FileProblemError):
            load_record(path)
    write({"__metadata__": {HEADER: "{}"}, "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}})
    with pytest.raises((FileProblemError, RecordError)):
        load_record(path)
    write({"__metadata__": {HEADER: "[" * 100000}, "a": entry})
    with pytest.raises((FileProblemError, RecordError)):
        load_record(path)


def test_a_file_of_the_other_form_is_refused(record, tmp_path):
    save_record(record, tmp_path / "m.pt")
    save_record(record, tmp_path / "m.safetensors")
    other = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "m.pt").read_bytes())
    (tmp_path / "x.pt").write_bytes(other)
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(FileProblemError):
            load_record(tmp_path / name)


def test_a_bytes_stream_of_nothing_is_not_an_archive(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    with pytest.raises(FileProblemError, match="expected a record"):
        load_record(tmp_path / "m.pt")
