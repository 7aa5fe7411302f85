"""Schema version 3: weights with any zero point, folds, branches, attention quantizers, the call, and the hash."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from dq_deploy.errors import DqError, FileProblemError, RecordError
from dq_deploy.record import (
    AttentionQuantizers,
    Branch,
    Call,
    CallInput,
    CodeTable,
    Fold,
    content_sha256,
    load_record,
    save_record,
)
from dq_deploy.record.files.arrays import arrays_from_record, record_from_arrays
from dq_deploy.record.summary import summarize_record
from tests.record.conftest import make_layer

FORMS = ("pt", "safetensors")


def with_layer(record, name, **changes):
    layers = dict(record.layers)
    layers[name] = dataclasses.replace(layers[name], **changes)
    return dataclasses.replace(record, layers=layers)


def wide(record):
    part = record.layers["a.linear"].parts[0]
    far = dataclasses.replace(part, w_zero_point=np.full((1, 5), -300, np.int32))
    return with_layer(record, "a.linear", parts=(far,))


def by_step(record):
    return with_layer(record, "a.conv", bias=np.arange(9, dtype=np.float32).reshape(3, 3))


def folded(record):
    return with_layer(record, "a.linear", folded=Fold(producer="a.norm", factor=np.array([1, 2, 0.5], np.float32)))


def branched(record):
    down = np.ones((2, 3, 3, 3), np.float32)
    return with_layer(record, "a.conv", branch=Branch(down=down, up=np.ones((3, 2), np.float32), scale=0.5))


def three_parts(record):
    layer = make_layer(np.random.default_rng(1), "z", (4, 2), parts=3)
    return dataclasses.replace(record, layers={**record.layers, "z": layer})


def attended(record):
    def table(bits, q_min, steps):
        scale = np.full(steps, 0.1, np.float32)
        return CodeTable(
            bits=bits, q_min=q_min, q_max=q_min + 2**bits - 1, scale=scale, zero_point=np.arange(steps, dtype=np.int32)
        )

    own = AttentionQuantizers(name="mid.attn", tables={"q": table(8, -128, 3), "p": table(16, 0, 1)})
    return dataclasses.replace(record, attention={"mid.attn": own})


def called(record):
    inputs = (
        CallInput(name="sample", dtype="float32", shape=("B", 3, "height", "width")),
        CallInput(name="added_cond_kwargs.text_embeds", dtype="float32", shape=("B", 8)),
    )
    return dataclasses.replace(record, call=Call(inputs=inputs, constants={"guess_mode": False}))


ADDED = (wide, by_step, folded, branched, three_parts, attended, called)


@pytest.mark.parametrize("add", ADDED)
@pytest.mark.parametrize("form", FORMS)
def test_what_version_three_adds_comes_back_with_the_same_bytes(record, tmp_path, add, form):
    extended = add(record)
    assert json.loads(arrays_from_record(extended)[0])["version"] == 3
    path, again = tmp_path / f"m.{form}", tmp_path / f"n.{form}"
    save_record(extended, path)
    loaded = load_record(path)
    save_record(dataclasses.replace(loaded), again)
    assert again.read_bytes() == path.read_bytes()
    left, right = arrays_from_record(extended), arrays_from_record(loaded)
    assert left[0] == right[0]
    assert all(np.array_equal(left[1][key], right[1][key]) for key in left[1])
    assert content_sha256(loaded) == content_sha256(extended) == content_sha256(dataclasses.replace(loaded))
    assert content_sha256(loaded) != content_sha256(record)


@pytest.mark.parametrize("add", [add for add in ADDED if add is not called])
def test_an_older_version_number_on_it_is_refused(record, add):
    text, arrays = arrays_from_record(add(record))
    header = json.loads(text)
    for version, dropped in ((2, ("attention", "call")), (1, ("attention", "call", "weight_only", "float_ranges"))):
        older = {key: value for key, value in header.items() if key not in dropped} | {"version": version}
        older["layers"] = [
            {key: value for key, value in entry.items() if key not in ("fold_producer", "branch")}
            for entry in header["layers"]
        ]
        with pytest.raises(RecordError):
            record_from_arrays(json.dumps(older), arrays)


def test_the_version_that_needs_it_is_named(record):
    text, arrays = arrays_from_record(wide(record))
    header = json.loads(text) | {"version": 2, "float_ranges": {"a": 1.0}}
    header = {key: value for key, value in header.items() if key not in ("attention", "call")}
    for entry in header["layers"]:
        del entry["fold_producer"], entry["branch"]
    with pytest.raises(RecordError, match=r"layer a.linear: part 0: w_code - w_zero_point spans .*version 3"):
        record_from_arrays(json.dumps(header), arrays)


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(record, tmp_path, form):
    extended = called(attended(wide(record)))
    path = tmp_path / f"m.{form}"
    save_record(extended, path)
    whole, chance, messages = path.read_bytes(), random.Random(7), []
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_record(path)
        except DqError as error:
            messages.append(str(error))
            continue
        assert content_sha256(dataclasses.replace(loaded)) == content_sha256(extended)
    assert len(messages) > 75
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_a_changed_number_is_named_with_its_file_and_can_be_let_through(record, tmp_path):
    path = tmp_path / "m.safetensors"
    save_record(called(record), path)
    scale = record.layers["a.conv"].parts[0].scale
    path.write_bytes(path.read_bytes().replace(scale.tobytes(), (2 * scale).tobytes()))
    with pytest.raises(FileProblemError, match=f"{path} is not what was written: its content has the hash"):
        load_record(path)
    loaded = load_record(path, hash_check=False)
    np.testing.assert_array_equal(loaded.layers["a.conv"].parts[0].scale, 2 * scale)


def test_an_extension_that_does_not_fit_is_named(record):
    one = np.ones(1, np.float32)
    for change, message in (
        (lambda: folded(record).layers["a.linear"].folded.factor, None),
        (lambda: with_layer(record, "a.linear", folded=Fold(producer="n", factor=one)), "fold factor has 1 channels"),
        (lambda: Fold(producer="", factor=one), "name is empty"),
        (lambda: Fold(producer="n", factor=-one), "fold factor holds -1"),
        (lambda: with_layer(record, "a.conv", bias=np.ones((2, 3), np.float32)), "bias has 2 rows, expected 3"),
        (lambda: Branch(down=one, up=one, scale=1.0), "branch down is float32"),
        (lambda: Branch(down=np.ones((2, 3), np.float32), up=np.ones((3, 1), np.float32), scale=1.0), "1 columns"),
        (
            lambda: with_layer(
                record,
                "a.linear",
                branch=Branch(down=np.ones((2, 4), np.float32), up=np.ones((5, 2), np.float32), scale=1.0),
            ),
            r"branch down has shape \(2, 4\)",
        ),
        (lambda: CodeTable(bits=8, q_min=1, q_max=256, scale=one, zero_point=np.zeros(1, np.int32)), "codes 1..256"),
        (lambda: AttentionQuantizers(name="a", tables={}), "quantizers of nothing"),
        (lambda: CallInput(name="x", dtype="float64", shape=()), "x is float64"),
        (lambda: CallInput(name="x", dtype="float32", shape=("a b",)), "size 'a b'"),
        (lambda: Call(inputs=(CallInput(name="x", dtype="bool", shape=()),), constants={"x": 1}), "names x twice"),
        (lambda: Call(inputs=(CallInput(name="x", dtype="bool", shape=()),), constants={"a": (1,)}), "change in JSON"),
        (lambda: Call(inputs=(CallInput(name="x", dtype="bool", shape=()),), constants={"a": np.nan}), "not JSON"),
        (lambda: save_record(None, "m.pt"), "is a NoneType"),
    ):
        if message is None:
            change()
            continue
        with pytest.raises(RecordError, match=message):
            change()


def test_the_summary_shows_what_version_three_adds(record):
    summary = summarize_record(branched(by_step(folded(wide(attended(called(record)))))))
    assert summary["schema_version"] == 3
    assert summary["call"]["sample"] == ["B", 3, "height", "width"]
    assert summary["attention"] == {"mid.attn": ["p", "q"]}
    rows = {row["name"]: row for row in summary["layers"]}
    assert rows["a.linear"]["weight_zero_points"] == [-300, -300]
    assert rows["a.linear"]["folded_into"] == "a.norm"
    assert rows["a.conv"]["branch_rank"] == 2
    assert rows["a.conv"]["bias_by_step"]
    assert summarize_record(record)["schema_version"] == 1
