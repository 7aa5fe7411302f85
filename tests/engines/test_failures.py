"""What fails or is not finite in an engine is one line that says where; wrong inputs are refused alike by all."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx
import pytest

from dq_deploy.engines.base import reason_of
from dq_deploy.errors import DqError, InputError, NonFiniteError
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.cpu import host_ops
from dq_deploy.native.runner import NativeRunner
from dq_deploy.open_engine import open_engine
from dq_deploy.targets import export
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

ENGINES = ("onnxruntime", "openvino", "native")


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=3, **ONE_LEVEL))


@pytest.fixture(scope="module")
def files(record, tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    for target in ("onnxruntime", "openvino"):
        export(record, folder / f"{target}.onnx", target=target)
    return folder


@pytest.fixture(scope="module")
def feeds(record):
    return example_inputs(call_of_record(record), 2, 0)


def opened(engine, files, record):
    if engine == "native":
        return NativeRunner(record, threads=1)
    pytest.importorskip(engine)
    return open_engine(files / f"{engine}.onnx", threads=1)


@pytest.fixture(scope="module", params=ENGINES)
def runner(request, files, record):
    with opened(request.param, files, record) as found:
        yield found


WRONG = {
    "no mapping": (lambda f: list(f.values()), "inputs are a list, expected a mapping"),
    "nothing": (lambda f: None, "inputs are a NoneType"),
    "one missing": (lambda f: {k: f[k] for k in ("sample", "timestep")}, "expected sample, timestep, class_labels"),
    "one unknown": (lambda f: f | {"other": f["sample"]}, "expected sample, timestep, class_labels"),
    "a name that is none": (lambda f: f | {3: f["sample"]}, "expected sample, timestep, class_labels"),
    "float64": (lambda f: f | {"sample": f["sample"].astype(np.float64)}, "sample is float64, expected a numpy array"),
    "float16": (lambda f: f | {"sample": f["sample"].astype(np.float16)}, "sample is float16, expected a numpy array"),
    "objects": (lambda f: f | {"sample": f["sample"].astype(object)}, "sample is object, expected a numpy array"),
    "whole timesteps": (lambda f: f | {"timestep": f["timestep"].astype(np.int64)}, "timestep is int64"),
    "float labels": (lambda f: f | {"class_labels": np.zeros(2, np.float32)}, "class_labels is float32"),
    "a list": (lambda f: f | {"sample": f["sample"].tolist()}, "sample is a list, expected a numpy array of float32"),
    "a number": (lambda f: f | {"timestep": np.float32(3)}, "timestep is a float32, expected a numpy array"),
    "a mask": (lambda f: f | {"sample": np.ma.masked_less(f["sample"], 0)}, "sample is a masked array, .* fill it"),
    "no axes": (lambda f: f | {"timestep": np.array(3, np.float32)}, r"timestep has shape \(\), expected \[B\]"),
    "another size": (lambda f: f | {"sample": f["sample"][:, :0]}, r"expected \[B, 1, height, width\]"),
    "an axis less": (lambda f: f | {"sample": f["sample"][0]}, r"expected \[B, 1, height, width\]"),
    "channels last": (lambda f: f | {"sample": f["sample"].transpose(0, 2, 3, 1)}, r"expected \[B, 1, height, width\]"),
    "two batches": (lambda f: f | {"timestep": f["timestep"][:1]}, "has a batch of 1, expected 2"),
    "batch 0": (
        lambda f: {k: v[:0] for k, v in f.items()},
        r"has shape \(0, 1, 8, 8\), expected \[B, 1, he",
    ),
    "NaN": (lambda f: f | {"sample": np.full_like(f["sample"], np.nan)}, "sample holds nan at"),
    "infinity": (lambda f: f | {"timestep": np.array([1, np.inf], np.float32)}, "timestep holds inf at"),
    "a label below": (lambda f: f | {"class_labels": np.array([-1, 0])}, "class_labels span -1..0, expected 0..2"),
    "a label above": (lambda f: f | {"class_labels": np.array([0, 3])}, "class_labels span 0..3, expected 0..2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_get_the_same_line_from_every_engine(runner, feeds, case):
    change, message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        runner.run(change(feeds))
    assert "\n" not in str(caught.value)


ODD_ARRAYS = {
    "of the other byte order": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "column by column": np.asfortranarray,
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "a subclass": lambda x: x.view(np.recarray),
}


@pytest.mark.parametrize("kind", ODD_ARRAYS)
def test_arrays_that_lie_oddly_in_memory_give_the_same_answer(runner, feeds, kind):
    want = runner.run(feeds)["output"]
    given = {name: ODD_ARRAYS[kind](value) for name, value in feeds.items()}
    np.testing.assert_array_equal(runner.run(given)["output"], want)


def test_a_repeated_row_without_memory_of_its_own_gives_the_same_answer(runner, feeds):
    rows = {name: np.broadcast_to(value[:1], value.shape) for name, value in feeds.items()}
    want = runner.run({name: value.copy() for name, value in rows.items()})["output"]
    np.testing.assert_array_equal(runner.run(rows)["output"], want)


def step_tables(graph) -> set[str]:
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.name.startswith(("dq/steps/rank", "dq/steps/factors")) and tensor.data_type == 1
    }


def last_bias(graph) -> set[str]:
    return {node.input[1] for node in graph.node if node.name == "dq/conv_out/biased"}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("damaged", "where"),
    [
        (step_tables, r"the first layer whose input is not finite is [\w.]+; verify"),
        (last_bias, r"the input of every quantized layer is finite, so it arises behind them; verify"),
    ],
)
def test_an_output_that_is_not_finite_says_where_that_begins(files, feeds, tmp_path, engine, damaged, where):
    pytest.importorskip(engine)
    model = onnx.load(files / f"{engine}.onnx")
    names = damaged(model.graph)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), np.inf, np.float32), tensor.name))
    onnx.save(model, tmp_path / "broken.onnx", save_as_external_data=True, location="broken.data")
    with (
        open_engine(tmp_path / "broken.onnx", threads=1, hash_check=False) as runner,
        pytest.raises(NonFiniteError, match=where) as caught,
    ):
        runner.run(feeds)
    assert "\n" not in str(caught.value)


def test_a_native_output_that_is_not_finite_says_so_too(record, feeds, monkeypatch):
    with NativeRunner(record, threads=1) as runner:
        output = runner.run(feeds)["output"]
        monkeypatch.setattr(runner.executor, "run", lambda _: {"output": output + np.float32(np.inf)})
        with pytest.raises(NonFiniteError, match="quantized layer is finite, so it arises behind them; verify"):
            runner.run(feeds)


class Broken:
    """Stands in for a library's object; any call raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str):
        raise self.error


def breaking(runner, error):
    """The attribute of a runner, or of what it holds, that raises in a run from now on."""
    if isinstance(runner, NativeRunner):
        return runner.executor, "context"
    return runner, "_session" if runner.engine == "onnxruntime" else "_request"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("first line\n\nsecond line"), "failed.*first line"),
        (ValueError("x" * 5000), "failed.*xxx"),
        (RuntimeError(""), "failed.*no reason given"),
    ],
)
def test_an_error_of_a_library_in_a_run_is_one_line_with_the_engine(runner, feeds, monkeypatch, error, message):
    monkeypatch.setattr(*breaking(runner, error), Broken(error))
    with pytest.raises(DqError, match=message) as caught:
        runner.run(feeds)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) <= 300
    assert runner.engine in text.lower().replace(" ", "")
    assert caught.value.__cause__ is not None


def test_too_little_memory_in_a_run_says_what_helps(runner, feeds, monkeypatch):
    monkeypatch.setattr(*breaking(runner, MemoryError()), Broken(MemoryError()))
    with pytest.raises(InputError, match="not enough memory for a batch of 2"):
        runner.run(feeds)


def test_a_failing_operation_of_the_native_engine_is_named(record, feeds, monkeypatch):
    def fail(*_):
        raise IndexError("index 7 is out of bounds")

    with NativeRunner(record, threads=1) as runner:
        monkeypatch.setattr(host_ops, "call", fail)
        with pytest.raises(InputError, match=r"native failed in the operation [\w.]+: IndexError: index 7 is out of"):
            runner.run(feeds)


def test_a_long_reason_keeps_its_ends():
    text = reason_of(RuntimeError("begin " + "x" * 1000 + " end"))
    assert len(text) <= 200
    assert text.startswith("begin")
    assert text.endswith(" end")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_runner_is_not_copied_nor_sent_to_another_process(runner, copied):
    with pytest.raises(InputError, match="cannot be copied or pickled, expected one runner a process"):
        copied(runner)
