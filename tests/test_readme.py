"""What the README tells a user to type works, on a tiny model in the demo model's place."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from tests.cli.running import command

FIVE = ("quantize", "export", "verify", "bench", "sample")
QUICK = {
    "quantize": "--samples 4 --steps 2",
    "verify": "--steps-checked 1 --inputs 1 --no-quantization-error --threads 1",
    "bench": "--batch 1 --runs 1 --threads 1",
    "sample": "--threads 1",
}
"""Options behind those of the page, so that each command costs seconds."""


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def commands_in(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if re.match(r" {4}dq-\w+ ", line)]


def save_tiny_model(folder: Path) -> None:
    """A pipeline folder of a model with the demo model's inputs, nearly all of whose work is in quantized layers."""
    from tests.tiny import ONE_LEVEL, SCHEDULER, tiny_denoiser

    tiny_denoiser(classes=10, **{**ONE_LEVEL, "block_out_channels": [16]}).module.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))


def save_tiny_pipeline(folder: Path) -> None:
    """A text pipeline's folder and a file of prompts."""
    from tests.pipelines.tiny_pipelines import tiny_text_pipeline
    from tests.tiny import tiny_conditional_denoiser

    tiny_text_pipeline(unet=tiny_conditional_denoiser().module).save_pretrained(folder / "my-pipeline")
    (folder / "prompts.txt").write_text("a lighthouse\na ball\n")


def test_the_readme_is_short(readme):
    assert len(readme.split()) <= 750


def test_its_commands_run_in_order(readme, tmp_path, monkeypatch):
    found = commands_in(readme)
    assert [words[0] for words in found[:5]] == [f"dq-{name}" for name in FIVE]
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "examples" / "mnist-ddpm-32")
    if find_spec("transformers") is None:
        found = [words for words in found if not any(word.startswith("my-") for word in words)]
    else:
        save_tiny_pipeline(tmp_path)
    for program, *words in found:
        if program == "dq-serve":  # does not end; see `test_what_it_asks_a_server_for_is_answered`
            continue
        name = program.removeprefix("dq-")
        training = ("--iterations", "2") if "dilatequant" in words else ()
        done = command(name, *words, *shlex.split(QUICK.get(name, "")), *training)
        assert done.code == 0, f"{program} {shlex.join(words)}: {done.err}"
    assert {"model.pt", "unet.onnx", "unet.onnx.json", "samples.png"} <= {path.name for path in tmp_path.iterdir()}


def test_what_it_asks_a_server_for_is_answered(readme, text_model):
    pytest.importorskip("transformers", reason="needs transformers for a pipeline of text")
    from dq_deploy.serve import Served
    from dq_deploy.serve.opening import open_service
    from tests.serve.live import live, send

    bodies = re.findall(r"curl -sN? +localhost:8000(\S+) -d '(.*?)'", readme, re.DOTALL)
    assert [path for path, _ in bodies] == ["/v1/images/generations"] * 2 + ["/v2/models/generate/infer"]
    served = Served(engine=text_model / "model.pt", model=text_model, steps=3, threads=1)
    with open_service(served) as service, live(service) as port:
        answers = [send(port, "POST", path, body.encode()) for path, body in bodies]
    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert answers[0][2]["data"][0]["seed"] == 3
    assert answers[1][2].count(b"event: image_generation.partial_image") == 2
    assert answers[2][2]["outputs"][0]["name"] == "IMAGES"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("serving", "engines", "methods", "foreign-checkpoints"))]
)
def test_every_command_and_option_exists(repository, page):
    found = commands_in((repository / page).read_text(encoding="utf-8"))
    assert found
    for program, *words in found:
        name = {"import": "import_record"}.get(program.removeprefix("dq-"), program.removeprefix("dq-"))
        app = typer.Typer()
        app.command()(getattr(importlib.import_module(f"dq_deploy.cli.{name}"), name))
        known = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, program
