"""Programs that lowering makes pass; an edit that no kernel could survive is refused, and the message names the op."""

from __future__ import annotations

import copy
import json

import pytest

from dq_deploy.errors import FileProblemError
from dq_deploy.native.check.program import check_joined_program
from dq_deploy.native.check.surroundings import surroundings_of
from dq_deploy.native.program.program import at_batch, check_bounds, from_json
from dq_deploy.native.trace.traced import traced_program
from tests.tiny import random_record, tiny_conditional_denoiser, tiny_denoiser


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=3))


@pytest.fixture(scope="module")
def joined(record):
    return json.loads(json.dumps(traced_program(record)))


def check(record, joined):
    check_joined_program(joined, surroundings_of(record, joined["constants"]))


@pytest.mark.parametrize("make", [tiny_denoiser, tiny_conditional_denoiser])
def test_what_lowering_makes_passes(make):
    record = random_record(make())
    check(record, json.loads(json.dumps(traced_program(record))))


def first(joined, kind, role=None):
    """The first op of a kind that has a role: kind, reads, writes, attributes."""
    return next(op for op in joined["ops"] if op[0] == kind and (role is None or role in {**op[1], **op[2]}))


def test_a_view_that_leaves_its_buffer_at_a_large_batch_alone_is_refused(record, joined):
    """At a batch of one it ends inside: only the line itself shows it."""
    bad = copy.deepcopy(joined)
    buffer = first(bad, "quantize")[1]["x"][0]
    elements = bad["buffers"][buffer][0]
    bad["buffers"][buffer][0] = {"B": elements["B"] - 1, "plus": 8}
    sizes = dict.fromkeys(record.float_parameters, 1 << 30) | dict.fromkeys(bad["constants"], 1 << 30)
    check_bounds(from_json(at_batch(bad, 8)), 8, sizes)  # what one batch shows
    with pytest.raises(FileProblemError, match="ends at element"):
        check(record, bad)


EDITS = {
    "an offset below 0": (
        lambda j: first(j, "quantize")[1]["x"].__setitem__(1, -1),
        "op .*quantize.*begins at element",
    ),
    "an offset behind the end": (lambda j: first(j, "int_conv2d")[2]["y"].__setitem__(1, 1 << 30), "ends at element"),
    "a negative stride": (lambda j: first(j, "elementwise")[1]["a"][3].__setitem__(0, -4), "stride of -4"),
    "a number beyond memory": (lambda j: first(j, "elementwise")[1]["a"][3].__setitem__(0, 1 << 62), "a number is"),
    "a buffer there is not": (lambda j: first(j, "quantize")[1]["x"].__setitem__(0, 10**6), "names buffer"),
    "a parameter there is not": (
        lambda j: first(j, "float_linear")[1]["weights"].__setitem__(0, "no"),
        "does not hold",
    ),
    "a write to a parameter": (lambda j: first(j, "elementwise")[2]["y"].__setitem__(0, "conv_in.bias"), "writes to"),
    "codes that are floats": (
        lambda j: j["buffers"][first(j, "quantize")[2]["codes0"][0]].__setitem__(1, "float32"),
        "uint8",
    ),
    "rows of codes that are no whole loads": (
        lambda j: first(j, "quantize")[2]["codes0"][3].__setitem__(1, 8),
        "strides",
    ),
    "an op there is not": (lambda j: j["ops"][0].__setitem__(0, "system"), "expected one of"),
    "a layer there is not": (lambda j: first(j, "int_linear")[3].__setitem__("layer", "no"), "names layer"),
    "a part there is not": (lambda j: first(j, "int_linear")[3].__setitem__("part", 7), "names part"),
    "a convolution as a linear layer": (lambda j: first(j, "int_conv2d").__setitem__(0, "int_linear"), "attributes"),
    "an image of another size": (lambda j: first(j, "int_conv2d")[3].__setitem__("in_size", [64, 64]), "rows"),
    "an output of another size": (lambda j: first(j, "int_conv2d")[3].__setitem__("out_size", [1, 1]), "out_size"),
    "codes of too many channels": (lambda j: first(j, "quantize")[3]["outs"][0].__setitem__("first", 99), "outs"),
    "groups that do not divide": (lambda j: first(j, "group_norm_silu_quantize")[3].__setitem__("groups", 3), "groups"),
    "a norm's factors of other length": (
        lambda j: first(j, "group_norm_silu_quantize")[1]["gamma"][2].__setitem__(0, 3),
        "gamma",
    ),
    "an operand too many": (
        lambda j: first(j, "quantize")[1].__setitem__("z", first(j, "quantize")[1]["x"]),
        "has \\[",
    ),
    "an elementwise kind there is not": (
        lambda j: first(j, "elementwise")[3].__setitem__("function", "no"),
        "function is",
    ),
    "keys of another number than values": (lambda j: first(j, "attention")[1]["k"][2].__setitem__(2, 1), "attention"),
    "a weight of another shape": (
        lambda j: first(j, "float_linear")[1]["weights"][2].__setitem__(0, 1),
        "float_linear",
    ),
    "an operation of numpy there is not": (
        lambda j: first(j, "host")[3].__setitem__("function", "os.system"),
        "no operation",
    ),
    "an unknown type of numpy": (lambda j: first(j, "host")[3].__setitem__("compute", "object"), "compute is"),
    "a value before it is there": (lambda j: j["ops"].insert(0, j["ops"].pop()), "before anything is there"),
    "an input left out": (lambda j: j["inputs"].pop("sample"), "inputs are"),
    "an output of another size than the denoiser's": (lambda j: j["outputs"]["output"][2].__setitem__(1, 2), "output"),
    "a line that is none": (lambda j: j["buffers"][0].__setitem__(0, {"B": "2", "plus": 0}), "a size is"),
    "a constant that is cut off": (
        lambda j: next(iter(j["constants"].values())).__setitem__("bytes", "AAAA"),
        "constant",
    ),
    "another version": (lambda j: j.__setitem__("version", 99), "version"),
    "an op that is no list": (lambda j: j["ops"].__setitem__(0, {}), "op 0"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_refused(name, record, joined):
    edit, message = EDITS[name]
    bad = copy.deepcopy(joined)
    edit(bad)
    with pytest.raises(FileProblemError, match=message):
        check(record, bad)
