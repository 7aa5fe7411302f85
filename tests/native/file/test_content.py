"""A program file gives the engine of its record, bit for bit, without torch; a changed one is refused, or harmless."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from dq_kernels.cpu.library import known_isas
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.errors import FileProblemError, MissingDependencyError, OptionError, RepackedWarning
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.file import content
from dq_deploy.native.file.content import program_of, write_program_file
from dq_deploy.native.file.layout import read_file, write_file
from dq_deploy.native.file.opening import read_program_file
from dq_deploy.native.runner import NativeRunner
from dq_deploy.native.trace.traced import traced_program
from dq_deploy.open_engine import open_engine
from dq_deploy.record import content_sha256
from dq_deploy.record.files.arrays import arrays_from_record
from tests.native.file.mutations import outcome
from tests.tiny import ONE_LEVEL, random_record, tiny_conditional_denoiser, tiny_denoiser


def record_of(bits: int = 4, **changes):
    return random_record(tiny_denoiser(**{**ONE_LEVEL, **changes}), weight_bits=bits)


@pytest.fixture(scope="module")
def record():
    return record_of(8)


@pytest.fixture(scope="module")
def path(record, tmp_path_factory):
    found = tmp_path_factory.mktemp("program") / "model.dqn"
    write_program_file(record, found)
    return found


def run(source, batch=3, **options):
    """Output of a record, a file of one, or an opened program file."""
    with NativeRunner(source, threads=1, **options) as runner:
        return runner.run(example_inputs(call_of_record(runner.record), batch, 0))["output"]


def test_the_output_is_the_record_s_bit_for_bit(record, path):
    held = read_program_file(path)
    for batch in (1, 2, 5):
        np.testing.assert_array_equal(run(held, batch), run(record, batch))


@pytest.mark.parametrize("isa", known_isas())
def test_another_instruction_set_gives_the_same_and_says_that_it_packed_anew(record, tmp_path, isa, recwarn):
    path = tmp_path / "model.dqn"
    assert write_program_file(record, path, isa="portable") == "portable"
    with open_engine(path, isa=isa, threads=1) as runner:
        got = runner.run(example_inputs(call_of_record(record), 2, 0))["output"]
        assert ("packed anew from portable" in runner.runtime_words) == (isa != "portable")
    np.testing.assert_array_equal(got, run(record, 2))
    said = [str(one.message) for one in recwarn if one.category is RepackedWarning]
    assert len(said) == (isa != "portable")
    assert all(f"packed for portable, this runs on {isa}" in words for words in said)


def test_a_file_for_an_instruction_set_that_this_cpu_lacks_is_packed_anew(record, path, monkeypatch):
    monkeypatch.setattr("dq_kernels.cpu.library.known_isas", lambda: ("portable",))
    with NativeRunner(read_program_file(path), threads=1) as runner:
        assert runner.repacked_from == read_program_file(path).isa
        assert runner.runs_on.isa == "portable"


def test_the_same_record_gives_the_same_bytes(record, path, tmp_path):
    write_program_file(record, tmp_path / "again.dqn")
    assert (tmp_path / "again.dqn").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("bits", [3, 8])
def test_the_whole_record_is_in_it(bits, tmp_path):
    record = record_of(bits)
    write_program_file(record, tmp_path / "x.dqn")
    held = read_program_file(tmp_path / "x.dqn").record
    (mine, arrays), (text, stored) = arrays_from_record(record), arrays_from_record(held)
    assert mine == text
    assert arrays.keys() == stored.keys()
    for name, array in arrays.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array, err_msg=name)
    assert content_sha256(held) == content_sha256(record)


def test_weights_beyond_int8_come_back_too(tmp_path):
    record = record_of(8)
    name, layer = next(iter(record.layers.items()))
    zero = np.full_like(layer.parts[0].w_zero_point, 100)
    part = dataclasses.replace(layer.parts[0], w_zero_point=zero)
    layers = {**record.layers, name: dataclasses.replace(layer, parts=(part,))}
    record = dataclasses.replace(record, layers=layers)
    write_program_file(record, tmp_path / "x.dqn")
    held = read_program_file(tmp_path / "x.dqn")
    np.testing.assert_array_equal(held.record.layers[name].parts[0].w_code, part.w_code)
    np.testing.assert_array_equal(run(held), run(record))


def test_weights_and_parameters_are_the_file_s_own_memory(path):
    """Nothing is held twice: what kernels read lies in the mapped file."""
    held = read_program_file(path)
    with NativeRunner(held, threads=1) as runner:
        runner.run(example_inputs(call_of_record(held.record), 1, 0))
        for place, own in runner.executor.constants.items():
            assert np.shares_memory(own.packed, held.packed[place])
        images = [v for v in held.record.float_parameters.values() if v.dtype == np.float32]
        shared = [any(np.shares_memory(base, v) for v in images) for base in runner.executor.floats.held().values()]
        assert sum(shared) > len(shared) / 2


def test_it_opens_and_runs_without_torch(path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['diffusers'] = None\n"
        "from dq_deploy import open_engine\n"
        "from dq_deploy.models import call_of_record, example_inputs\n"
        f"with open_engine({str(path)!r}) as runner:\n"
        "    runner.run(example_inputs(call_of_record(runner.record), 1, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_sizes_are_traced_as_from_the_record(tmp_path):
    record = random_record(tiny_conditional_denoiser(), steps=2)
    write_program_file(record, tmp_path / "x.dqn")
    call = call_of_record(record)
    other = dataclasses.replace(call, sizes={**call.sizes, "tokens": 5})
    feeds = example_inputs(other, 1, 0)
    with NativeRunner(record, threads=1) as one, NativeRunner(read_program_file(tmp_path / "x.dqn"), threads=1) as two:
        np.testing.assert_array_equal(one.run(feeds)["output"], two.run(feeds)["output"])


def test_other_sizes_without_torch_are_one_line(record, monkeypatch):
    monkeypatch.setattr("dq_deploy.native.trace.traced.sys", SimpleNamespace(modules={}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="which needs torch; install it"):
        traced_program(record)


def changed(path, target, **edits):
    """The file with other entries in its header, all hashes made anew."""
    mapped = read_file(path)
    write_file(target, {**mapped.header, **edits}, mapped.blocks)
    return target


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"format": "x"}, "expected dq_deploy.program 1"),
        ({"version": 2}, "expected dq_deploy.program 1"),
        ({"dq_deploy": "0.0.1"}, "dq_deploy 0.0.1 wrote it"),
        ({"isa": "sse9"}, "unknown instruction set"),
        ({"packing": "0" * 64}, "packed for .* in another way"),
        ({"codes": {}}, "not those that its header lists"),
        ({"record_sha256": 3}, "has the hash 3"),
        ({"more": 1}, "other keys"),
        ({"program": []}, "other keys than a program"),
        ({"record": {}}, "is damaged|names no format"),
        ({"turned": ["no"]}, "is damaged"),
    ],
)
def test_a_header_that_no_export_writes_is_refused(path, tmp_path, edits, message):
    with pytest.raises(FileProblemError, match=message) as caught:
        read_program_file(changed(path, tmp_path / "x.dqn", **edits))
    assert str(tmp_path / "x.dqn") in str(caught.value)


def test_packed_weights_whose_head_says_more_than_there_is_are_refused(path, tmp_path):
    mapped = read_file(path)
    name = next(key for key in mapped.blocks if key.startswith("packed/"))
    for at in range(0, 96, 4):
        bad = mapped.blocks[name].copy()
        bad[at : at + 4] += 1
        edited = dataclasses.replace(mapped, blocks={**mapped.blocks, name: bad})
        if at in BITS_AND_PAIRS and head_passes(edited):
            run(program_of(edited))  # numbers of another model, which stay inside
            continue
        with pytest.raises(FileProblemError, match="packed weights"):
            program_of(edited)
    short = dataclasses.replace(mapped, blocks={**mapped.blocks, name: mapped.blocks[name][:-64]})
    with pytest.raises(FileProblemError, match="packed weights"):
        program_of(short)


BITS_AND_PAIRS = (12, 16)
"""Bytes of the head that say how wide its numbers are; of the others there is one right value."""


def head_passes(mapped):
    try:
        program_of(mapped)
    except FileProblemError:
        return False
    return True


def test_an_unknown_instruction_set_is_refused(record, tmp_path):
    with pytest.raises(OptionError, match="expected one of portable, avx2"):
        write_program_file(record, tmp_path / "x.dqn", isa="amx_emulated")
    assert not (tmp_path / "x.dqn").exists()


def test_a_device_that_it_does_not_run_on_is_refused(path):
    with pytest.raises(OptionError, match="runs on a CPU"):
        open_engine(path, device="cuda")
    with pytest.raises(OptionError, match="is a program file"):
        open_engine(path, engine="onnxruntime")


def test_without_the_kernels_it_is_said(path, monkeypatch):
    from dq_kernels.cpu.library import KernelsMissingError

    def missing(isa):
        raise KernelsMissingError("the CPU kernels are not built")

    monkeypatch.setattr(content, "layout_sha256", missing)
    with pytest.raises(MissingDependencyError, match="not built"):
        read_program_file(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_mutated_header_is_refused_or_runs_inside_its_memory(mutable, seed):
    assert outcome(mutable, seed) in ("refused", "ran")


@pytest.fixture(scope="module")
def mutable(path):
    return read_file(path)
