"""The reader of manifests: each way an entry can be wrong is one line; what is read is written again to the byte."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dq_deploy.manifest.engine import hashed_bytes, stored_json, text_beside, text_inside, with_data_hash
from dq_deploy.manifest.entries import Entries, EntryError
from dq_deploy.manifest.values import (
    BuildFacts,
    EngineManifest,
    ManifestLayer,
    ManifestPart,
    PlanManifest,
    ProductShape,
    SizeRange,
    TensorEntry,
)
from tests.manifests import engine_manifest

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "files").glob("*.manifest.json"))

WHOLE: dict[str, Any] = {
    "format": "dq_deploy.plan",
    "version": 1,
    "record_sha256": "ab" * 32,
    "target": "tensorrt-rtx",
    "mode": "exact",
    "single_step_batch": False,
    "family": "unet2d",
    "model_config": {"sample_size": 8, "scale": 1e-05, "largest": -float("inf"), "more": [1, None]},
    "scheduler_config": {"steps": 1000},
    "inputs": [{"name": "sample", "dtype": "float32", "shape": ["B", 1, 8, 8]}],
    "outputs": [{"name": "output", "dtype": "float32", "shape": ["B", 1, 8, 8]}],
    "timesteps": [0, 500.0],
    "step_edges": [250.0],
    "versions": {"onnx": "1.0"},
    "options": {"target": "tensorrt-rtx", "mode": "exact", "float_type": "float16", "conv": "gemm"},
    "macs": {"of_all": 400, "of_quantizable": 350, "attention": 50, "layers": {"conv_in": 50}},
    "layers": [
        {
            "name": "conv_in", "kind": "conv2d", "integer": True, "form": "int8", "reason": "", "output": "y",
            "im2col_bytes": 9,
            "parts": [
                {
                    "input": "x", "codes": "c", "codes_padding": [0, 0, 0, 0], "rows": "r", "weight": "w",
                    "weight_type": "int8", "accumulator": None, "accumulator_holds": "held", "node": "n",
                    "offset": None, "offset_table": "zero_point", "offset_shift": -128, "layout": "nhwc",
                    "product": {"kind": "gemm", "m": None, "n": 8, "k": 9},
                }
            ],
        },
        {"name": "to_q", "integer": False, "weight_type": "int4", "parts": []},
    ],
    "notes": ["n"],
    "float_precision": [{"name": "a", "largest": 3e4, "kept": "float32", "why": "w"}],
    "onnx": "unet.onnx",
    "onnx_sha256": "0" * 64,
    "onnx_data_sha256": {"unet.onnx.data": "1" * 64},
    "plan_sha256": "2" * 64,
    "runtime": "tensorrt-rtx",
    "runtime_version": "1.7.1.116",
    "compute_capabilities": ["8.9"],
    "portable": False,
    "profiles": [{"sample": {"min": [1, 1, 8, 8], "opt": [2, 1, 8, 8], "max": [4, 1, 8, 8]}}],
    "build": {"seconds": 1.5, "peak_mib": None, "workspace_mib": 64, "timing_cache": None, "plan_bytes": 10},
    "layers_built": [
        {"name": "conv_in", "requested": "integer", "executed": "integer", "operands": ["int8 x int8"], "macs": 50,
         "why": ""}
    ],
}  # fmt: skip

ANYTHING = ("model_config", "scheduler_config")
"""Entries whose inside is diffusers', not ours."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        if path == () and key in ("format", "version"):
            continue
        yield (*path, key)
        if path or key not in ANYTHING:
            yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def with_value(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(WHOLE)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def words(path: tuple[Any, ...]) -> str:
    """A path as messages have it: `layers[0].name`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


PLACES = list(places(WHOLE))


@pytest.mark.parametrize("path", PLACES, ids=map(words, PLACES))
def test_an_entry_of_a_wrong_kind_is_one_line_that_names_it(path):
    right = at(WHOLE, path)
    for wrong in ([1] if isinstance(right, dict) else {"a": []}, "yes" if isinstance(right, bool) else True):
        with pytest.raises(EntryError) as caught:
            PlanManifest.from_json(with_value(path, wrong))
        text = str(caught.value)
        assert text.startswith(f"{words(path)} is ")
        assert ", expected " in text
        assert "\n" not in text


KEYS = [path for path in PLACES if isinstance(path[-1], str)]


@pytest.mark.parametrize("path", KEYS, ids=map(words, KEYS))
def test_a_missing_and_a_misspelt_entry_is_an_error_or_one_that_may_be_absent(path):
    missing = copy.deepcopy(WHOLE)
    value = at(missing, path[:-1]).pop(path[-1])
    misspelt = copy.deepcopy(missing)
    at(misspelt, path[:-1])[f"{path[-1]}z"] = value
    for changed in (missing, misspelt):
        try:
            found = PlanManifest.from_json(changed)
        except EntryError as error:
            assert str(error) == f"{words(path)} is missing"  # noqa: PT017
        else:
            assert found.to_json() == changed  # a name of our own is not taken for another


def test_what_must_be_there_is_what_this_release_cannot_read_without():
    needed = {words(path) for path in KEYS if fails_without(path)}
    assert {name for name in needed if "[" not in name and "." not in name} == {
        "target", "mode", "model_config", "scheduler_config", "inputs", "outputs", "timesteps", "step_edges", "layers",
        "onnx_sha256", "plan_sha256", "runtime", "runtime_version", "compute_capabilities", "profiles",
    }  # fmt: skip


def fails_without(path: tuple[Any, ...]) -> bool:
    missing = copy.deepcopy(WHOLE)
    del at(missing, path[:-1])[path[-1]]
    try:
        PlanManifest.from_json(missing)
    except EntryError:
        return True
    return False


@pytest.mark.parametrize("value", [WHOLE, *(pytest.param(json.loads(p.read_text()), id=p.stem) for p in GOLDEN)])
def test_what_is_read_is_written_again_to_the_byte(value):
    kind = PlanManifest if value.get("format", "") == "dq_deploy.plan" else EngineManifest
    value = {"format": kind.FORMAT, "version": 1, **value}
    found = kind.from_json(value)
    assert text_inside(found) == json.dumps(value, sort_keys=True)
    assert json.dumps(stored_json(found)) == json.dumps(value, sort_keys=True)
    beside = json.dumps({**value, "onnx_sha256": "ab"}, sort_keys=True, indent=1) + "\n"
    assert kind is PlanManifest or text_beside(found, "ab") == beside


@pytest.mark.skipif(not GOLDEN, reason="the golden files are not there")
def test_every_target_has_a_golden_manifest_and_none_has_an_entry_that_is_not_known():
    found = [EngineManifest.from_json(json.loads(path.read_text())) for path in GOLDEN]
    assert {manifest.target for manifest in found} == {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"}
    for manifest in found:
        assert dict(manifest.others) == {}
        for layer in manifest.layers:
            assert dict(layer.others) == {}
            for part in layer.parts or ():
                assert dict(part.others) == {}
                assert part.product is None or dict(part.product.others) == {}


def test_unknown_entries_stay_and_are_hashed_wherever_they_stand():
    value = copy.deepcopy(WHOLE)
    for holder in (value, value["layers"][0], value["layers"][0]["parts"][0], value["macs"], value["build"]):
        holder["of_another_release"] = {"a": [1, None]}
    found = PlanManifest.from_json(value)
    assert found.to_json() == value
    assert replace(found, mode="fast").to_json() == {**value, "mode": "fast"}
    assert b"of_another_release" in hashed_bytes(found)


def test_the_hashed_bytes_are_all_but_the_hash_itself():
    value = {**engine_manifest().to_json(), "data_sha256": None, "new": 1}
    manifest = EngineManifest.from_json({**value, "content_sha256": "ab"})
    assert hashed_bytes(manifest) == json.dumps(value, sort_keys=True).encode()
    assert json.loads(text_inside(with_data_hash(engine_manifest(), None)))["data_sha256"] is None
    assert "data_sha256" not in engine_manifest().to_json()


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_a_manifest_that_is_no_object_is_one_line(value):
    with pytest.raises(EntryError, match=r"it is .*, expected an object"):
        EngineManifest.from_json(value)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (
            TensorEntry,
            {"name": "x", "dtype": "f", "shape": [0]},
            r"shape\[0\] is 0, expected a size of at least 1",
        ),
        (TensorEntry, {"name": "x", "dtype": "f", "shape": [""]}, r"shape\[0\] is '', expected a size"),
        (SizeRange, {"min": [1], "opt": [1], "max": [True]}, r"max\[0\] is true, expected a size of at least 1"),
        (BuildFacts, {"seconds": float("nan")}, "seconds is NaN, expected a finite number"),
        (BuildFacts, {"plan_bytes": -1}, "plan_bytes is -1, expected a whole number from 0"),
        (BuildFacts, {"plan_bytes": 2**70}, "plan_bytes is 1180591620717411303424, expected a whole number"),
        (ManifestLayer, {"name": "x" * 60, "integer": 1}, "integer is 1, expected true or false"),
        (ManifestLayer, {"name": "a", "integer": True, "form": "x", "kind": None}, "kind is null, expected text"),
        (ManifestPart, {"offset": 0.5}, "offset is 0.5, expected a whole number or null"),
    ],
)
def test_each_kind_has_its_words(kind, value, text):
    with pytest.raises(EntryError, match=text):
        kind.from_json(value)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(EntryError) as caught:
        TensorEntry.from_json({"name": "x", "dtype": "f", "shape": "y" * 500})
    assert len(str(caught.value)) < 100


def test_a_none_is_written_as_null_only_where_it_is_asked_for():
    assert ManifestPart(input="x").to_json() == {
        "input": "x", "accumulator": None, "accumulator_holds": None, "offset": None, "offset_table": None,
    }  # fmt: skip
    assert ManifestPart.from_json({"input": "x"}).to_json() == {"input": "x"}
    assert ManifestLayer(name="a", integer=True).to_json() == {"name": "a", "integer": True}
    assert ProductShape(kind="gemm", n=1, k=2, nulls=frozenset({"m"})).to_json() == {
        "kind": "gemm", "m": None, "n": 1, "k": 2,
    }  # fmt: skip


def test_every_field_of_every_value_has_a_kind_that_the_reader_knows():
    kinds = [kind for kind in all_of(Entries) if kind.__module__ == "dq_deploy.manifest.values"]
    assert len(kinds) >= 14
    for kind in kinds:
        assert {"nulls", "others"} <= set(get_type_hints(kind, include_extras=True))
        with pytest.raises(EntryError):
            kind.from_json({name: [[]] for name in get_type_hints(kind)})


def all_of(kind: type) -> list[type]:
    return [kind, *(below for child in kind.__subclasses__() for below in all_of(child))]


def test_a_misspelt_name_in_our_own_code_is_an_error_at_once():
    with pytest.raises(TypeError, match="single_step_batsh"):
        replace(engine_manifest(), single_step_batsh=True)
    with pytest.raises(AttributeError):
        _ = engine_manifest().single_step_batsh
