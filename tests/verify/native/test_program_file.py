"""`dq-verify` holds a program file against its record: the same is exact; a changed weight or program is named."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from dq_deploy.native.file.content import write_program_file
from dq_deploy.native.file.layout import read_file, write_file
from dq_deploy.verify.proof import prove_engine
from dq_deploy.verify.prover import ProofOptions
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

OPTIONS = ProofOptions(steps=1, inputs=1)


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(**ONE_LEVEL), weight_bits=8)


@pytest.fixture(scope="module")
def path(record, tmp_path_factory):
    found = tmp_path_factory.mktemp("program") / "model.dqn"
    write_program_file(record, found)
    return found


def proven(record, path):
    return prove_engine(record, path, OPTIONS, quantization_error=False)


def test_a_file_of_the_record_is_exact(record, path):
    report = proven(record, path)
    assert report.exact
    assert not report.file_differences
    assert report.layers_compared == report.layers_total > 5


def edited(path, target, edit):
    """The file with one edit of its header or blocks, and all hashes made anew."""
    mapped = read_file(path)
    header, blocks = copy.deepcopy(dict(mapped.header)), {name: array.copy() for name, array in mapped.blocks.items()}
    edit(header, blocks)
    write_file(target, header, blocks)
    return target


def weight(header, blocks):
    name = next(key for key in blocks if key.startswith("packed/"))
    blocks[name][int(np.flatnonzero(blocks[name][512:])[0]) + 512] ^= 1


def scale(header, blocks):
    name = next(key for key in blocks if key.endswith("/weight_scale"))
    blocks[name][...] *= np.float32(1.5)


def bias(header, blocks):
    blocks["float/conv_in.bias" if "float/conv_in.bias" in blocks else "layer/conv_in/bias"][...] += 1


def eps(header, blocks):
    next(op for op in header["program"]["ops"] if "eps" in op[3])[3]["eps"] = 0.5


@pytest.mark.parametrize(
    ("edit", "named"), [(weight, "w_code"), (scale, "weight_scale"), (bias, "bias"), (eps, "program.ops")]
)
def test_one_edit_is_named_though_every_hash_fits(record, path, tmp_path, edit, named):
    report = proven(record, edited(path, tmp_path / "x.dqn", edit))
    assert not report.exact
    assert any(named in text for text in report.file_differences), report.file_differences
