"""Every command and program of docs/tutorial.md runs, in order, and prints what the page shows.

A smaller model with the same inputs stands in the demo model's place: the words are the same, in less time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.docs.tutorial_blocks import blocks_of, comparable, mark, script_of
from tests.forked import Forked
from tests.readers.foreign_files import DDIM_SMALL, foreign, save_checkpoint, save_float, wrapped

WORKING_FOLDER = Path("demo-out/tutorial")


@pytest.fixture(scope="module")
def blocks(repository):
    return blocks_of((repository / "docs" / "tutorial.md").read_text(encoding="utf-8"))


def save_small_model(folder: Path) -> None:
    """A pipeline folder of a model with the demo model's inputs, one level and no attention."""
    from tests.tiny import ONE_LEVEL, SCHEDULER, tiny_denoiser

    changes = {**ONE_LEVEL, "sample_size": 32, "block_out_channels": [16]}
    tiny_denoiser(classes=10, **changes).module.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**SCHEDULER, "_class_name": "DDIMScheduler"})
    )


def save_files_of_another_project(folder: Path) -> None:
    """The checkpoint, float model and settings that a reader of the page brings along."""
    model = foreign(DDIM_SMALL, timesteps=[900, 500, 100], scheduler={"_class_name": "DDIMScheduler"})
    save_checkpoint(folder / "quant.pth", wrapped(model)[0])
    save_float(folder / "float.safetensors", model.state)
    (folder / "settings.yaml").write_text(yaml.safe_dump(model.settings))


@pytest.fixture(scope="module")
def output(blocks, repository, tmp_path_factory):
    """What the whole page prints, in a folder that has nothing but the example."""
    clone = tmp_path_factory.mktemp("clone")
    save_small_model(clone / "examples" / "mnist-ddpm-32")
    shutil.copy(repository / "examples" / "random_pipeline.py", clone / "examples")
    (clone / WORKING_FOLDER).mkdir(parents=True)
    save_files_of_another_project(clone / WORKING_FOLDER)
    for block in blocks:
        if block.language == "python" and block.title:
            (clone / WORKING_FOLDER / block.title).write_text(block.text)
    environment = {
        "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'kernels'}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "TERM": "dumb",
    }
    script = clone / "page.sh"
    script.write_text(script_of(blocks))
    with contextlib.chdir(clone):
        done = Forked("tests.docs.forked_commands", script, environment=environment, together=True).ended()
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_every_command_and_program_runs(blocks, output):
    assert sum(block.language == "bash" for block in blocks) == output.count("===== block") >= 10
    assert sum(block.language == "python" and block.title is not None for block in blocks) == 3


def test_every_program_of_the_page_is_run(blocks):
    assert not [block for block in blocks if block.language == "python" and block.title is None]


def test_the_page_shows_what_is_printed(blocks, output):
    """Line by line; numbers are of another run, so only the words are compared."""
    for number, block in enumerate(blocks):
        if block.language != "text":
            continue
        ran = max(other for other in range(number) if blocks[other].language == "bash")
        printed = output.split(f"{mark(ran)}\n")[1].split("===== block")[0]
        there = {comparable(line) for line in printed.splitlines()}
        missing = [line for line in block.text.splitlines() if line != "..." and comparable(line) not in there]
        assert not missing, f"the page shows lines that block {ran} does not print: {missing}"


def test_a_program_of_the_page_needs_nothing_of_this_package(blocks):
    (plain,) = [block for block in blocks if block.title == "plain.py"]
    assert "dq_deploy" not in plain.text.replace("dq_deploy.manifest", "")
    assert len([line for line in plain.text.splitlines() if line.strip()]) <= 12
