"""Manifests fit the published schemas, and say what was given: nothing is dropped, and nothing secret is in them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from dq_deploy.cli.text.serve_arguments import ServeArguments
from dq_deploy.cli.text.serve_manifest import GOES, Goes, flag, pod_options, usual
from dq_deploy.serve.kubernetes.manifests import kserve_documents, kubernetes_documents, manifest_text
from dq_deploy.serve.kubernetes.replica import CLOSES_SECONDS, LEAVES_SERVICE_SECONDS

SCHEMAS = json.loads((Path(__file__).parent / "schemas" / "published.json").read_text())
TOKEN = "a-token-that-nobody-else-knows"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are named, and one that lies beside the engine."""
    folder = tmp_path_factory.mktemp("pod")
    for name in ("model.onnx", "model.onnx.data", "model.onnx.json", "model.pt", "cert.pem", "key.pem", "proof.json"):
        (folder / name).write_bytes(b"x" * 2**10)
    (folder / "tokens.txt").write_text(f"{TOKEN}\n")
    (folder / "my pipeline").mkdir()
    (folder / "my pipeline" / "model_index.json").write_text("{}")
    return folder


def given(folder, **changes):
    usual = {"engine": folder / "model.pt", "token_file": folder / "tokens.txt", "threads": 2, "isa": "avx512_vnni"}
    where = {} if "write_kserve" in changes else {"write_kubernetes": folder / "out.yaml"}
    return ServeArguments(**{**usual, **where, **changes})


def everything(folder, **changes):
    """Every option that a manifest takes, each with another value than the usual one."""
    values = {
        "engine": folder / "model.pt",
        "model": folder / "my pipeline",
        "ckpt": folder / "model.onnx",
        "proof": folder / "proof.json",
        "component": "unet",
        "name": "My Digits",
        "scheduler": "ddim",
        "steps": 7,
        "port": 8123,
        "max_batch": 4,
        "instances": 3,
        "queue": 9,
        "time_limit": 45.5,
        "threads": 2,
        "pipeline_threads": 3,
        "isa": "avx2",
        "device": "cpu",
        "attention": "int8",
        "token_file": folder / "tokens.txt",
        "certificate": folder / "cert.pem",
        "key": folder / "key.pem",
        "drain": 12.5,
        "log_prompts": True,
        "otel_endpoint": "http://collector:4318/v1/traces",
        "metrics_port": 9123,
        "replicas": 3,
        "max_replicas": 12,
        "image": "registry.example/dq:1",
        "claim": "weights",
        "memory_gib": 3.5,
        "prometheus": "http://metrics.example:9090",
        "hash_check": False,
        "write_kubernetes": folder / "out.yaml",
    }
    return ServeArguments(**{**values, **changes})


def documents_of(arguments):
    """As they are read back from the file's text."""
    found = pod_options(arguments)
    write = kserve_documents if arguments.write_kserve is not None else kubernetes_documents
    return list(yaml.safe_load_all(manifest_text(write(found.replica, found.scaling), found.head)))


def of_kind(documents, kind):
    return next(one for one in documents if one["kind"] == kind)


def pod_of(documents):
    if documents[0]["kind"] == "InferenceService":
        return documents[0]["spec"]["predictor"]
    return documents[0]["spec"]["template"]["spec"]


def schema_errors(document):
    import jsonschema_rs

    schema = {"$ref": SCHEMAS["kinds"][document["kind"]]["$ref"], "$defs": SCHEMAS["$defs"]}
    return [
        f"{list(e.instance_path)}: {e.message}" for e in jsonschema_rs.Draft7Validator(schema).iter_errors(document)
    ]


WRITTEN = [
    ("plain", {}, ["Deployment", "Service", "PodDisruptionBudget"]),
    ("scaled", {"max_replicas": 5}, ["Deployment", "Service", "PodDisruptionBudget", "ScaledObject"]),
    ("a GPU", {"device": "cuda", "isa": None}, ["Deployment", "Service", "PodDisruptionBudget"]),
    ("kserve", {"write_kserve": Path("k.yaml")}, ["InferenceService", "PodDisruptionBudget", "ScaledObject"]),
]


@pytest.mark.parametrize(("changes", "kinds"), [one[1:] for one in WRITTEN], ids=[one[0] for one in WRITTEN])
def test_every_document_fits_its_published_schema(folder, changes, kinds):
    documents = documents_of(given(folder, **changes))
    assert [one["kind"] for one in documents] == kinds
    assert [schema_errors(one) for one in documents] == [[]] * len(kinds)


def test_with_every_option_they_fit_too(folder):
    plain = documents_of(everything(folder))
    kserve = everything(folder, write_kubernetes=None, write_kserve=folder / "k.yaml", certificate=None, key=None)
    assert [schema_errors(one) for one in [*plain, *documents_of(kserve)]] == [[]] * 7


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "livenessProbe", "periodSeconds"), "ten"),
        ("Deployment", ("spec", "template", "spec", "terminationGraceSeconds"), 5),
        ("Deployment", ("spec", "selector"), None),
        ("Service", ("spec", "ports", 0, "port"), None),
        ("PodDisruptionBudget", ("spec", "maxUnavailable"), 1.5),
        ("ScaledObject", ("spec", "triggers", 0, "type"), None),
        ("ScaledObject", ("spec", "maxReplicas"), 5),
        ("InferenceService", ("spec", "predictor", "minReplicaCount"), 5),
        ("InferenceService", ("spec", "predictor", "containers", 0, "image"), 5),
    ],
)
def test_what_a_schema_does_not_know_is_found(folder, kind, path, value):
    changes = {"write_kserve": Path("k.yaml")} if kind == "InferenceService" else {"max_replicas": 5}
    document = of_kind(documents_of(given(folder, **changes)), kind)
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert len(schema_errors(document)) == 1


def test_every_option_of_the_server_has_its_place():
    assert set(GOES) == {field.name for field in fields(ServeArguments)}


def test_every_option_that_is_given_reaches_the_container(folder):
    options = everything(folder)
    unlike = [field.name for field in fields(options) if getattr(options, field.name) == usual(field.name)]
    assert unlike == ["host", "write_triton", "write_kserve"]
    arguments = pod_of(documents_of(options))["containers"][0]["args"]
    missing = {
        name
        for name, goes in GOES.items()
        if goes in (Goes.ARGUMENT, Goes.FILE, Goes.SECRET, Goes.POD)
        and not {flag(name), flag(f"no_{name}")} & set(arguments)
    }
    assert missing == set()
    assert arguments[:4] == ["--engine", "/models/model.pt", "--model", "/models/my pipeline"]
    assert "--no-hash-check" in arguments
    assert arguments[arguments.index("--time-limit") + 1] == "45.5"
    assert arguments[arguments.index("--certificate") + 1] == "/run/secrets/dq-tls/tls.crt"


def test_the_container_s_command_line_is_one_that_dq_serve_takes(folder):
    import typer

    from dq_deploy.cli.serve import serve

    app = typer.Typer()
    taken = []
    app.command()(lambda **_: None)
    app.registered_commands[0].callback = serve
    arguments = pod_of(documents_of(everything(folder)))["containers"][0]["args"]
    context = typer.main.get_command(app).make_context("dq-serve", list(arguments))
    taken = {name: value for name, value in context.params.items() if value != usual_or_none(name)}
    assert taken["host"] == "0.0.0.0"
    assert {"engine", "model", "name", "isa", "drain", "metrics_port", "hash_check"} <= set(taken)


def usual_or_none(name):
    return usual(name) if name != "engine" else None


def test_tokens_and_keys_are_named_and_not_held(folder):
    text = manifest_text(*_whole(everything(folder)))
    assert TOKEN not in text
    assert "x" * 16 not in text
    assert str(folder) not in text
    volumes = {one["name"]: one for one in pod_of(documents_of(everything(folder)))["volumes"]}
    assert volumes["tokens"]["secret"]["secretName"] == "my-digits-tokens"
    assert volumes["tls"]["secret"]["secretName"] == "my-digits-tls"


def _whole(arguments):
    found = pod_options(arguments)
    return kubernetes_documents(found.replica, found.scaling), found.head


def test_a_pod_is_killed_only_after_all_that_the_server_does_to_end(folder):
    pod = pod_of(documents_of(given(folder, drain=12.5)))
    container = pod["containers"][0]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(LEAVES_SERVICE_SECONDS)]
    assert container["args"][container["args"].index("--drain") + 1] == "12.5"
    assert pod["terminationGracePeriodSeconds"] >= LEAVES_SERVICE_SECONDS + 12.5 + CLOSES_SECONDS


def test_probes_ask_what_the_server_answers_without_a_token(folder):
    from dq_deploy.serve.web.access import _OPEN

    container = pod_of(documents_of(everything(folder)))["containers"][0]
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} <= set(_OPEN)
    assert {probe["scheme"] for probe in probes} == {"HTTPS"}
    assert {probe["port"] for probe in probes} == {"http"}


def test_prometheus_finds_the_gauges_that_the_scaled_object_asks_for(folder):
    documents = documents_of(given(folder, max_replicas=5, max_batch=4, instances=2))
    annotations = documents[0]["spec"]["template"]["metadata"]["annotations"]
    ports = {one["name"]: one["containerPort"] for one in pod_of(documents)["containers"][0]["ports"]}
    assert annotations["prometheus.io/port"] == str(ports["metrics"])
    trigger = of_kind(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert trigger["query"] == (
        'sum(dq_requests_waiting{pod=~"model-[0-9a-z]+-[0-9a-z]{5}"}) + '
        'sum(dq_requests_running{pod=~"model-[0-9a-z]+-[0-9a-z]{5}"})'
    )
    assert trigger["threshold"] == "8"  # half of what two engines of four samples draw at once
    from dq_deploy.serve.telemetry.metrics import Metrics

    text = Metrics(waiting=lambda: 0, running=lambda: 0, pictures_running=lambda: 0).text().decode()
    assert {"dq_requests_waiting 0.0", "dq_requests_running 0.0"} <= set(text.splitlines())


def test_what_scales_a_deployment_is_the_only_one_that_counts(folder):
    assert documents_of(given(folder))[0]["spec"]["replicas"] == 2
    assert "replicas" not in documents_of(given(folder, max_replicas=5))[0]["spec"]
    kserve = documents_of(given(folder, write_kserve=Path("k.yaml")))
    assert kserve[0]["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    scaled = of_kind(kserve, "ScaledObject")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 10)
    assert scaled["scaleTargetRef"]["name"] == "model-predictor"


@pytest.mark.parametrize(
    ("isa", "label"),
    [("avx2", "AVX2"), ("avx_vnni", "AVXVNNI"), ("avx512_vnni", "AVX512VNNI"), ("amx", "AMXINT8"), ("portable", None)],
)
def test_a_pod_runs_only_where_the_node_has_the_instruction_set(folder, isa, label):
    pod = pod_of(documents_of(given(folder, isa=isa)))
    args = pod["containers"][0]["args"]
    assert args[args.index("--isa") + 1] == isa
    terms = str(pod.get("affinity"))
    assert (f"cpu-cpuid.{label}'" in terms) if label else ("affinity" not in pod)


def test_cores_memory_and_gpus_follow_from_the_options(folder):
    def asked(**changes):
        return pod_of(documents_of(given(folder, **changes)))["containers"][0]["resources"]

    assert asked(threads=2, instances=3)["requests"]["cpu"] == "6"
    assert asked(memory_gib=3.5) == {"requests": {"cpu": "2", "memory": "3584Mi"}, "limits": {"memory": "3584Mi"}}
    assert asked()["requests"]["memory"] == "1025Mi"  # of two kilobytes, and what a server needs besides
    assert asked(device="cuda", isa=None, instances=2)["limits"] == {"nvidia.com/gpu": "2"}


def test_the_head_says_what_must_be_there_first(folder):
    found = pod_options(given(folder, engine=folder / "model.onnx", isa=None))
    assert any("model.onnx, model.onnx.data, model.onnx.json" in line for line in found.head)
    assert not found.alike


def test_an_engine_of_other_libraries_says_no_instruction_set(folder):
    pod = pod_of(documents_of(given(folder, engine=folder / "model.onnx", isa=None)))
    assert "affinity" not in pod
