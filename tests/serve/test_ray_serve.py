"""Two replicas of the image server under Ray Serve answer as one service in this process does.

Ray is heavy and has an environment of its own: `make test-ray` makes it and says where its Python is; without, these
tests are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import psutil
import pytest

from tests.serve.asking import wait_for
from tests.serve.live import live, send
from tests.serve.ray_server import PYTHON, ROOT, TOKEN, Load, ray_server
from tests.serve.triton.real_server import free_ports

if PYTHON not in os.environ:
    pytest.skip(f"{PYTHON} names no Python with ray[serve]; run make test-ray", allow_module_level=True)

BODIES = [{"prompt": str(seed % 3), "seed": seed, "steps": 6 + seed % 3} for seed in range(6)]
LONG = {"prompt": "1", "seed": 3, "steps": 1000, "stream": True, "step_events": True}
GENERATIONS = "/v1/images/generations"


def picture(answer):
    return answer["data"][0]["b64_json"]


@pytest.fixture(scope="module")
def server(tiny_record_path, tmp_path_factory):
    tokens = tmp_path_factory.mktemp("ray") / "tokens.txt"
    tokens.write_text(f"{TOKEN}\n")
    options = ("--engine", str(tiny_record_path), "--replicas", "2", "--token-file", str(tokens), "--drain", "20")
    with ray_server(os.environ[PYTHON], free_ports(1)[0], *options) as found:
        yield found


@pytest.fixture(scope="module")
def wanted(label_service):
    """The pictures of a service in this process."""
    with live(label_service) as port:
        return [picture(send(port, "POST", GENERATIONS, body)[2]) for body in BODIES]


def test_every_replica_gives_the_bytes_of_the_service_in_process(server, wanted):
    assert len(set(wanted)) == len(BODIES)
    with Load(server, BODIES, clients=6) as load:
        wait_for(lambda: len(server.counted("dq_pictures_total")) == 2 and len(load.answers) >= 60)
    done = server.counted("dq_requests_total", status="done")
    assert len(done) == 2
    assert min(done.values()) >= 5  # six different requests, so each replica drew several of them
    assert sum(done.values()) == len(load.answers)
    assert {status for _, status, _, _ in load.answers} == {200}
    assert all(picture(answer) == wanted[index] for index, _, answer, _ in load.answers)


def test_events_come_through_while_the_picture_is_drawn(server, wanted):
    with server.asked("POST", GENERATIONS, LONG) as (_, response):
        assert response.readline() == b"event: image_generation.queued\n"
        own = response.headers["dq-request-id"]
        assert json.loads(response.readline().removeprefix(b"data: "))["request_id"] == own
        assert [entry["id"] for entry in server.requests()] == [own]
        events = [line for line in response.read().decode().splitlines() if line.startswith("event: ")]
    assert events[-1] == "event: image_generation.completed"
    assert events.count("event: image_generation.step") > 10
    with server.asked("POST", GENERATIONS, BODIES[0] | {"stream": True, "partial_images": 2}) as (_, response):
        lines = response.read().decode().splitlines()
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [one["type"].rpartition(".")[2] for one in data] == ["partial_image", "partial_image", "completed"]
    assert data[-1]["b64_json"] == wanted[0]


def test_a_request_is_listed_and_ended_whichever_replica_is_asked(server):
    for _ in range(5):
        with server.asked("POST", GENERATIONS, LONG) as (_, response):
            response.readline()
            own = response.headers["dq-request-id"]
            assert [entry["id"] for entry in server.requests()] == [own]
            assert server.send("DELETE", f"/v1/requests/{own}") == (
                200,
                {"id": own, "object": "request", "cancelled": True},
            )
            last = response.read().decode().splitlines()[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"
    status, answer = server.send("DELETE", "/v1/requests/req-0")
    assert (status, answer["error"]["code"]) == (404, "request_not_found")


def test_the_request_of_a_client_that_goes_away_is_cancelled(server):
    def cancelled():
        return sum(server.counted("dq_requests_total", status="cancelled").values())

    before = cancelled()
    with server.asked("POST", GENERATIONS, LONG) as (_, response):
        response.readline()
    with server.asked("POST", GENERATIONS, LONG) as (connection, response):
        response.readline()
        connection.close()
    wait_for(lambda: cancelled() == before + 2)
    assert server.requests() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/requests"), ("DELETE", "/v1/requests/x"), ("GET", "/metrics"), ("POST", GENERATIONS)],
)
def test_paths_of_all_replicas_ask_for_the_token_too(server, method, path):
    status, answer = server.send(method, path, token=None)
    assert (status, answer["error"]["code"]) == (401, "invalid_token")
    assert server.send("GET", "/v2/health/ready", token=None)[0] == 200


def test_a_killed_replica_is_replaced_and_no_answer_is_wrong(server, wanted):
    before = set(server.counted("dq_pictures_running"))
    first, second = server.replicas()
    clients = 6
    with Load(server, BODIES, clients=clients) as load:
        wait_for(lambda: len(load.answers) >= 20)
        first.kill()
        wait_for(lambda: len(set(server.counted("dq_pictures_total")) - before) == 1, 120)
        wait_for(lambda: all(server.counted("dq_pictures_total").values()), 60)
        count = len(load.answers)
        wait_for(lambda: len(load.answers) >= count + 20)
    new = {one.pid for one in server.replicas()} - {second.pid}
    assert len(new) == 1
    assert first.pid not in new
    failed = [status for _, status, _, _ in load.answers if status != 200]
    assert set(failed) <= {503}  # what the lost replica held was asked of the other one
    assert len(failed) <= clients
    assert all(picture(answer) == wanted[index] for index, status, answer, _ in load.answers if status == 200)
    assert max(seconds for *_, seconds in load.answers) < 30


def test_told_to_stop_it_answers_what_it_holds_refuses_what_is_new_and_leaves_no_process(server):
    held = [LONG | {"seed": seed} for seed in range(4)]
    processes = server.processes()
    assert len(processes) > 5
    with (
        server.asked("POST", GENERATIONS, held[0]) as (_, first),
        server.asked("POST", GENERATIONS, held[1]) as (_, second),
    ):
        first.readline(), second.readline()
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.send("POST", GENERATIONS, BODIES[0])[0] == 503, 10)
        ends = [one.read().decode() for one in (first, second)]
    assert all("event: image_generation.completed" in end for end in ends)
    assert server.process.wait(60) == 0
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    assert server.processes() == []


CHECKS = """
import sys, time
import ray
sys.path.insert(0, "examples")
from types import SimpleNamespace as A
import ray_serve
from ray_serve import Pulse, labelled

running = []
service = A(metrics=A(listeners=[]), limits=A(time_limit_s=0.2), standings=lambda: running)
pulse = Pulse(service)
time.sleep(0.3)
pulse.check()  # nothing runs
running.append(A(order=A(started_at=1.0)))
time.sleep(0.3)
service.metrics.listeners[0](None)
pulse.check()  # the engine was called
time.sleep(0.3)
try:
    pulse.check()
except RuntimeError as error:
    print(error)
one = "# HELP dq_a_total A b.\\n# TYPE dq_a_total counter\\ndq_a_total{x=\\"1\\"} %s\\n"
print(labelled([("r", one % 3.0), ("s", one % 4.0)]).decode())

for given in sys.argv[1:]:
    sys.argv = ["ray_serve.py", *given.split()]
    try:
        ray_serve.main()
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def checked(tiny_record_path):
    """What the checks above say on stdout, and the refusals of some options on stderr."""
    options = [
        "--engine none.pt",
        f"--engine {tiny_record_path} --host 0.0.0.0",
        f"--engine {tiny_record_path} --replicas 0",
        f"--engine {tiny_record_path} --drain soon",
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [os.environ[PYTHON], "-c", CHECKS, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), [line for line in done.stderr.splitlines() if line.startswith(("ray_serve", "2"))]


def test_an_engine_that_hangs_fails_the_health_check_and_metrics_are_told_apart(checked):
    lines, _ = checked
    assert lines[0] == "requests run, but the engine was not called for 0 s"
    assert lines[1:3] == ["# HELP dq_a_total A b.", "# TYPE dq_a_total counter"]
    assert lines[3:5] == ['dq_a_total{replica="r",x="1"} 3.0', 'dq_a_total{replica="s",x="1"} 4.0']


def test_what_cannot_be_served_is_refused_in_one_line_before_ray_starts(checked):
    _, lines = checked
    assert lines == [
        "ray_serve.py: error: --engine none.pt is not there",
        "2",
        "ray_serve.py: error: --host 0.0.0.0 is reached from other machines, expected --token-file",
        "2",
        "ray_serve.py: error: --replicas: Input should be greater than or equal to 1",
        "2",
        "ray_serve.py: error: --drain: Input should be a valid number, unable to parse string as a number",
        "2",
    ]
