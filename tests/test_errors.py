"""What a library raises becomes one line with its place; this project's own faults and errors stay what they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dq_deploy.errors import (
    DqError,
    LibraryError,
    OptionError,
    explained,
    is_out_of_memory,
    library_errors,
    raise_if_out_of_memory,
    words_of,
)
from dq_deploy.methods.blocks.nested_values import gathered

ROOT = Path(__file__).resolve().parents[1]


def raised(function):
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def _through_the_package():
    """A statement of the package in which torch's compiled part raises."""
    return gathered([(slice(0, 2), torch.ones(2, 3)), (slice(2, 4), torch.ones(2, 5))], 4, (1,))


FOREIGN = [
    lambda: torch.ones(2) @ torch.ones(3),
    lambda: np.ones(2) + np.ones(3),
    lambda: json.loads("{"),
    lambda: {}["missing"],
]


@pytest.mark.parametrize("function", FOREIGN)
def test_any_exception_inside_the_work_gets_its_place_and_advice(function):
    def work():
        with library_errors("step 3 of 5", "look there"):
            function()

    error = raised(work)
    assert type(error) is LibraryError
    assert str(error).startswith("step 3 of 5: ")
    assert str(error).endswith("; look there")
    assert len(str(error)) < 300
    assert error.__cause__ is not None


def test_own_errors_interrupts_and_memory_pass():
    for error in (OptionError("a"), KeyboardInterrupt()):

        def work(error=error):
            with library_errors("here", "look"):
                raise error

        assert raised(work) is error

    def allocate():
        with library_errors("here", "look"):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    error = raised(allocate)
    assert type(error) is MemoryError
    assert "here" in str(error)
    assert is_out_of_memory(error)


def test_a_fault_of_this_program_stays_one():
    from dq_deploy.artifacts import sha256_of_bytes

    def work():
        with library_errors("here", "look"):
            DqError.exit_code.missing  # noqa: B018 - a fault on purpose

    assert type(raised(work)) is LibraryError  # raised in a test file: no statement of the package

    def ours():
        with library_errors("here", "look"):
            sha256_of_bytes("text")  # the statement inside the package raises

    assert type(raised(ours)) is TypeError


@pytest.mark.parametrize(
    ("function", "words", "code"),
    [
        (lambda: torch.nn.Conv2d(2, 2, 1)(torch.ones(1, 5, 3, 3)), "torch failed: RuntimeError", 2),
        (_through_the_package, "a compiled library failed: RuntimeError", 2),
        (lambda: Path("/none/there").read_bytes(), "the system says No such file or directory: /none/there", 2),
        (lambda: "\udcff".encode(), "is no UTF-8", 2),
        (lambda: (_ for _ in ()).throw(RecursionError()), "nested too deeply", 2),
        (lambda: (_ for _ in ()).throw(MemoryError()), "not enough memory; give", 2),
        (lambda: (_ for _ in ()).throw(MemoryError("9 GiB")), "not enough memory (9 GiB)", 2),
        (
            lambda: (_ for _ in ()).throw(ImportError("failed to map segment from shared object")),
            "not enough memory",
            2,
        ),
        (lambda: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")), "there is not enough memory", 2),
        (lambda: (_ for _ in ()).throw(RuntimeError("can't start new thread")), "no more threads; give fewer", 2),
        (lambda: (_ for _ in ()).throw(OptionError("got a")), "got a", 2),
        (lambda: int("x"), "internal error: ValueError: invalid literal", 1),
    ],
)
def test_every_exception_has_a_line_and_a_code(function, words, code):
    error = raised(function)
    line, found = explained(error)
    assert found == code
    assert words in line


def test_errors_of_libraries_are_told_by_their_class():
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
    from safetensors import SafetensorError

    for kind, name in ((SafetensorError, "safetensors"), (InvalidArgument, "onnxruntime")):
        line, code = explained(kind("odd"))
        assert (line.startswith(f"{name} failed: "), code) == (True, 2)


def test_words_of_an_exception_are_one_short_line():
    words = words_of(ValueError("a\n" + "b" * 5000))
    assert len(words) < 200
    assert "\n" not in words
    assert words_of(ValueError()) == "ValueError"


def test_memory_that_ran_out_is_told_from_damage():
    for error in (MemoryError("9 GiB"), RuntimeError("Failed to allocate memory for requested buffer of size 9")):
        with pytest.raises(MemoryError):
            raise_if_out_of_memory(error)
    raise_if_out_of_memory(RuntimeError("PytorchStreamReader failed reading zip archive"))


def test_weights_that_do_not_fit_in_memory_are_not_called_damaged(monkeypatch, tmp_path):
    import safetensors

    from dq_deploy import load_model
    from tests.tiny import ONE_LEVEL, tiny_denoiser

    tiny_denoiser(**ONE_LEVEL).module.save_pretrained(tmp_path)

    def refuse(path, framework):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        load_model(tmp_path)


def test_every_extra_that_is_named_exists():
    """What a message tells to install can be installed."""
    import tomllib

    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for room in ("dq_deploy", "kernels", "docs", "README.md"):
        place = ROOT / room
        for path in [place] if place.is_file() else [*place.rglob("*.py"), *place.rglob("*.md")]:
            for named in re.findall(r"dq-deploy\[([a-z, -]+)\]", path.read_text(encoding="utf-8")):
                missing = {extra.strip() for extra in named.split(",")} - known
                assert not missing, f"{path.relative_to(ROOT)} names {sorted(missing)}"
