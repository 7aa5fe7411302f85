"""A real Triton Inference Server draws what `dq-sample` draws, bit for bit, over HTTP and gRPC.

Its Python wants numpy below 2. `make test-triton` makes an environment and says where its Python is; without, these
tests are skipped. The server of PyPI has no backend for ONNX Runtime: `onnxruntime_backend.py` stands for it.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dq_deploy import open_engine
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.serve.triton import write_triton_repository
from tests.serve.triton import scheduler_bits
from tests.serve.triton.drawn_here import drawn_here
from tests.serve.triton.real_server import PYTHON, RealServer, real_server

if PYTHON not in os.environ:
    pytest.skip(f"{PYTHON} names no Python with nvidia-pytriton; run make test-triton", allow_module_level=True)
http = pytest.importorskip("tritonclient.http")

KINDS = {"PROMPT": "BYTES", "NEGATIVE_PROMPT": "BYTES", "LABEL": "INT64", "SEED": "INT64", "GUIDANCE": "FP32"}
TYPES = {"BYTES": object, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32}


@dataclass(frozen=True, kw_only=True)
class Running:
    """The server, and the engines behind it by name."""

    server: RealServer
    engines: dict[str, Path]
    emoji: Path
    repositories: tuple[Path, ...]

    def client(self):
        return http.InferenceServerClient(self.server.http, network_timeout=600, connection_timeout=600)

    def calls(self):
        """Samples of each request in each call of a denoiser."""
        return [ast.literal_eval(line) for line in self.server.batches.read_text().splitlines()]

    def ask(self, model, output="IMAGES", **inputs):
        with self.client() as client:
            return client.infer(model, [tensor(name, value) for name, value in inputs.items()]).as_numpy(output)


def tensor(name, value):
    if isinstance(value, np.ndarray):
        kind = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}[value.dtype.name]
    else:
        kind = KINDS.get(name, "INT32")
        values = value if isinstance(value, list) else [value]
        value = np.array([v.encode() for v in values] if kind == "BYTES" else values, TYPES[kind])
    found = http.InferInput(name, value.shape, kind)
    found.set_data_from_numpy(value)
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory, repository, demo_model_dir, demo_engine):
    from dq_deploy import export, load_record
    from dq_deploy.cli.quantize import main

    place = tmp_path_factory.mktemp("real-triton")
    emoji = repository / "examples" / "emoji-text-to-image"
    (place / "prompts.txt").write_text("pizza\nred heart\n")
    command = f"dq-quantize --model {emoji} --method minmax --steps 4 --samples 2 --guidance 3 --prompts "
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*command.split(), str(place / "prompts.txt"), "--out", str(place / "emoji.pt")])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (0, None)
    export(load_record(place / "emoji.pt"), place / "emoji.onnx")
    (place / "server").mkdir()
    digits = write_triton_repository(
        place / "digits", model=demo_model_dir, engine=demo_engine, name="digits", instances=2
    )
    texts = write_triton_repository(
        place / "emoji", model=emoji, engine=place / "emoji.onnx", name="emoji", instances=2
    )
    repositories = (digits.path, texts.path)
    with real_server(os.environ[PYTHON], repositories, place / "server") as server:
        yield Running(
            server=server,
            engines={"digits": demo_engine, "emoji": place / "emoji.onnx"},
            emoji=emoji,
            repositories=repositories,
        )


DIGITS = {"LABEL": [3, 7], "SEED": 5, "STEPS": 6}
PIZZA = {"PROMPT": ["pizza", "red heart"], "NEGATIVE_PROMPT": "blue", "SEED": 9, "STEPS": 3, "GUIDANCE": 3.3}


def wanted_digits(running):
    return drawn_here(running.engines["digits"], None, PipelineCall(labels=(3, 7), seed=5, steps=6, count=2))


def wanted_pizza(running):
    asked = PipelineCall(prompts=("pizza", "red heart"), negative_prompt="blue", seed=9, steps=3, guidance=3.3, count=2)
    return drawn_here(running.engines["emoji"], running.emoji, asked)


def test_pictures_over_http_are_those_of_dq_sample(running):
    digits, pizza = running.ask("digits", **DIGITS), running.ask("emoji", **PIZZA)
    assert np.array_equal(digits, wanted_digits(running))
    assert np.array_equal(pizza, wanted_pizza(running))
    assert (digits.shape, pizza.shape) == ((2, 32, 32, 1), (2, 32, 32, 3))
    assert len({picture.tobytes() for picture in pizza}) == 2


def test_a_plain_json_request_as_by_curl_gives_the_same_picture(running):
    entries = [
        {"name": name, "datatype": KINDS.get(name, "INT32"), "shape": [len(values)], "data": values}
        for name, values in (("LABEL", [3, 7]), ("SEED", [5]), ("STEPS", [6]))
    ]
    body = json.dumps({"inputs": entries}).encode()
    with urllib.request.urlopen(f"http://{running.server.http}/v2/models/digits/infer", body, timeout=600) as answer:
        found = json.load(answer)["outputs"][0]
    assert found["datatype"] == "UINT8"
    assert np.array_equal(np.array(found["data"]).reshape(found["shape"]), wanted_digits(running))


def test_schedulers_compute_in_numpy_1_what_they_do_in_numpy_2(running):
    """Behind model.py, which sets the rules of numpy 2; by those of numpy 1 some noise levels differ by a bit."""
    script = Path(__file__).with_name("scheduler_bits.py")
    model = running.repositories[0] / "digits" / "1" / "model.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([os.environ[PYTHON], script, model], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["numpy"].startswith("1.")
    assert np.__version__.startswith("2.")
    assert found["bits"] == scheduler_bits.every()


def over_grpc(running, place, requests, *configs):
    """What the gRPC client is answered, by the request's number; a request is (model, inputs, further keys)."""
    values = [
        {
            "model": model,
            "output": "IMAGES",
            "inputs": {n: [KINDS.get(n, "INT32"), v if isinstance(v, list) else [v]] for n, v in inputs.items()},
            **more,
        }
        for model, inputs, more in requests
    ]
    (place / "requests.json").write_text(json.dumps(values))
    script = Path(__file__).with_name("grpc_side.py")
    command = [os.environ[PYTHON], script, running.server.grpc, place / "requests.json", place / "out.npz"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*command, *configs], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(place / "out.npz")


def test_pictures_over_grpc_are_those_of_dq_sample_and_a_wrong_label_has_its_reason(running, tmp_path):
    configs = [path for one in running.repositories for path in one.glob("*/config.pbtxt")]
    assert len(configs) == 4
    requests = [("digits", DIGITS, {}), ("emoji", PIZZA, {}), ("digits", {**DIGITS, "LABEL": 11}, {})]
    found = over_grpc(running, tmp_path, requests, *configs)
    assert np.array_equal(found["0"], wanted_digits(running))
    assert np.array_equal(found["1"], wanted_pizza(running))
    assert str(found["2"]) == "StatusCode.INVALID_ARGUMENT: LABEL is 11, expected 0 to 10"


def test_a_request_that_is_taken_back_over_grpc_takes_no_further_step(running, tmp_path):
    before = len(running.calls())
    long = {"LABEL": [3] * 64, "SEED": 1, "STEPS": 1000}
    over_grpc(running, tmp_path, [("digits", long, {"cancel": 1.5})])
    time.sleep(0.5)
    taken = len(running.calls()) - before
    time.sleep(1.5)
    assert len(running.calls()) - before == taken
    assert 0 < taken < 64_000
    assert np.array_equal(running.ask("digits", **DIGITS), wanted_digits(running))


def test_one_step_is_that_of_the_engine(running):
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((2, 1, 32, 32)).astype(np.float32),
        "timestep": np.array([[999], [17]], np.float32),
        "class_labels": np.array([[3], [8]], np.int64),
    }
    with open_engine(running.engines["digits"], threads=1) as engine:
        wanted = engine.run({**feeds, **{name: feeds[name][:, 0] for name in ("timestep", "class_labels")}})
    assert np.array_equal(running.ask("digits_denoiser", "output", **feeds), wanted["output"])


WRONG = {
    "a label out of range": ("digits", {"LABEL": 11}, "LABEL is 11, expected 0 to 10"),
    "no seed": ("digits", {"SEED": None}, "SEED"),
    "a negative seed": ("digits", {"SEED": -1}, "SEED is -1"),
    "steps of another type": ("digits", {"STEPS": np.array([3], np.int64)}, "STEPS"),
    "an unknown input": ("digits", {"WISH": 3}, "unexpected inference input 'WISH'"),
    "too many steps": ("digits", {"STEPS": 100_000}, "STEPS is 100000, expected 1 to 1000"),
    "an empty prompt": ("emoji", {"PROMPT": ""}, "PROMPT is empty"),
    "a guidance that is no number": ("emoji", {"GUIDANCE": float("nan")}, "GUIDANCE is nan"),
    "an odd height": ("emoji", {"HEIGHT": 33, "WIDTH": 32}, "height"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gets_its_reason_and_the_server_stays_up(case, running):
    model, changes, words = WRONG[case]
    inputs = {**(DIGITS if model == "digits" else PIZZA), **changes}
    with pytest.raises(http.InferenceServerException, match=words):
        running.ask(model, **{name: value for name, value in inputs.items() if value is not None})
    with running.client() as client:
        assert client.is_server_ready()
        assert client.is_model_ready(model)


def test_a_step_with_nan_is_refused_where_the_loop_makes_it_and_wrong_shapes_by_the_server(running):
    feeds = {
        "sample": np.zeros((1, 2, 32, 32), np.float32),
        "timestep": np.zeros((1, 1), np.float32),
        "class_labels": np.zeros((1, 1), np.int64),
    }
    with pytest.raises(http.InferenceServerException, match="unexpected shape for input 'sample'"):
        running.ask("digits_denoiser", "output", **feeds)
    nine = {name: np.repeat(value[:, :1], 9, axis=0) for name, value in feeds.items()}
    with pytest.raises(http.InferenceServerException, match="batch-size must be <= 8"):
        running.ask("digits_denoiser", "output", **nine)


def joined(running):
    """Calls of the denoisers that held the samples of several requests."""
    return [sizes for sizes in running.calls() if len(sizes) > 1]


def test_steps_of_several_requests_are_joined_and_keep_their_bits(running):
    rng = np.random.default_rng(1)
    feeds = [
        {
            "sample": rng.standard_normal((1, 1, 32, 32)).astype(np.float32),
            "timestep": np.array([[rng.integers(1, 1000)]], np.float32),
            "class_labels": np.array([[rng.integers(10)]], np.int64),
        }
        for _ in range(24)
    ]
    alone = [running.ask("digits_denoiser", "output", **one) for one in feeds]
    before = len(joined(running))
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda one: running.ask("digits_denoiser", "output", **one), feeds))
    assert len(joined(running)) > before
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_pictures_asked_for_at_once_are_those_asked_for_alone(running):
    requests = [{"LABEL": i % 10, "SEED": i, "STEPS": 3 + i % 4} for i in range(8)]
    texts = [{"PROMPT": f"face {i}", "SEED": i, "STEPS": 2 + i % 2, "GUIDANCE": 3.0} for i in range(4)]
    every = [("digits", one) for one in requests] + [("emoji", one) for one in texts]
    alone = [running.ask(model, **one) for model, one in every]
    before = len(joined(running))
    for _ in range(10):  # on a busy machine no two steps may meet within half a millisecond
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda one: running.ask(one[0], **one[1]), every))
        assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
        if len(joined(running)) > before:
            break
    assert len(joined(running)) > before
    assert len({one.tobytes() for one in alone}) == len(alone)


def test_the_server_read_the_configuration_that_was_written(running):
    with running.client() as client:
        config = client.get_model_config("digits_denoiser")
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 500
    assert config["model_warmup"][0]["name"] == "one call with zeros"
    assert config["parameters"]["dq_target"]["string_value"] == "onnxruntime"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
