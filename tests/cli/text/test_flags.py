"""Library messages name options by their Python names, and each command says them as its flags."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq_deploy.cli.text.flags import FLAGS, REFERENCE, flag_of, with_flags
from dq_deploy.errors import LibraryError, OptionError
from dq_deploy.verify.report.findings import GRAPH_ONLY
from tests.cli.running import command

ROOT = Path(__file__).resolve().parents[3]
FLAG = re.compile(r"(?:^|(?<=[\s`(]))--[a-z]")
FOREIGN_FLAGS = ("start it with --gpus all", "trtexec --exportLayerInfo")
"""Of other programs."""

NO_OPTIONS = ("`ldm`",)
"""Words in backticks that are a value in a settings file."""

ONE_COMMAND = {
    "dq_deploy/bench/native_baseline.py": "dq-bench",
    "dq_deploy/verify/output/float_source.py": "dq-verify",
    "dq_deploy/pipelines/quantized.py": "dq-sample",
    "dq_deploy/serve/__init__.py": "dq-serve",
    "dq_deploy/serve/kubernetes/replica.py": "dq-serve",
    "dq_deploy/serve/opening.py": "dq-serve",
    "dq_deploy/serve/triton/loop_settings.py": "dq-serve",
}
"""Files whose words reach one command only, with an option that is called otherwise elsewhere."""


@functools.cache
def texts_of_the_library() -> tuple[tuple[str, str, bool], ...]:
    """(file, text, whether it is a docstring) of each string in a library file; a placeholder is a word in braces."""
    found = []
    for path in sorted((ROOT / "dq_deploy").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if not name.startswith("dq_deploy/cli/"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [(name, text, is_docstring) for text, is_docstring in texts_of(tree)]
    return tuple(found)


def texts_of(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    inside = {id(value) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for value in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values), False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value, id(node) in docstrings


def test_no_library_file_names_a_flag():
    named = [
        (name, text)
        for name, text, _ in texts_of_the_library()
        if FLAG.search(text) and not any(words in text for words in FOREIGN_FLAGS)
    ]
    assert not named, f"write the Python name of the option in backticks, see dq_deploy/cli/text/flags.py: {named}"


def test_an_argument_of_a_pipeline_is_said_as_the_command_takes_it():
    assert with_flags("give `control_image`", "dq-sample") == "give --control-image"
    assert with_flags("give `control_image`", "dq-quantize") == "give control_image in --call"
    assert with_flags("give `prompt`", "dq-quantize") == "give a line of --prompts"


def test_each_option_in_a_library_message_has_a_flag():
    unknown = [
        (name, match[0])
        for name, text, is_docstring in texts_of_the_library()
        if not is_docstring
        for match in REFERENCE.finditer(text)
        if match[0] not in NO_OPTIONS and flag_of(match["name"], match["command"] or ONE_COMMAND.get(name, "")) is None
    ]
    assert not unknown, f"add these to dq_deploy/cli/text/flags.py: {unknown}"


def test_the_table_lists_every_command_it_can():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(FLAGS) <= set(scripts)


@pytest.mark.parametrize("name", FLAGS)
def test_each_flag_is_one_of_its_command(name):
    word = name.removeprefix("dq-")
    shown = command("import_record" if word == "import" else word, "--help").out
    offered = set(re.findall(r"--[a-z][a-z-]*", shown))
    assert set(re.findall(r"--[a-z][a-z-]*", " ".join(FLAGS[name].values()))) <= offered


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("`compute_capabilities` got 'x', expected 8.9", "--compute-capability got 'x', expected 8.9"),
        ("build it with `shapes`", "build it with --shapes"),
        ("give `shapes` sample:1..2..3; or none", "give --shapes sample:1..2..3; or none"),
        ('use `runtime="tensorrt"` on a GPU', "use --runtime tensorrt on a GPU"),
        ("export it with dq-export `conv`.", "export it with dq-export --conv."),
        ('again with dq-export `target="openvino"`', "again with dq-export --target openvino"),
        ("give `time_limit_s=60`, or more", "give --time-limit 60, or more"),
        ("(`log` FILE keeps it)", "(--log FILE keeps it)"),
        ("`nothing_of_ours` and `two words`", "`nothing_of_ours` and `two words`"),
        ("write `weight_bits: 4` lines", "write `weight_bits: 4` lines"),
        ("a`mode`b.pt and x/`mode`/y and '`mode`' are paths", "a`mode`b.pt and x/`mode`/y and '`mode`' are paths"),
    ],
)
def test_an_option_is_said_as_the_flag_of_the_command(message, said):
    assert with_flags(message, "dq-build") == said


@pytest.mark.parametrize(
    ("name", "message", "said"),
    [
        ("dq-quantize", 'tdac with `kind="random"`, expected', "tdac with --calibration random, expected"),
        ("dq-quantize", "see the option list of `QuantizeOptions`", "see the option list of dq-quantize --help"),
        (
            "dq-quantize",
            "matches no layer; see the names with `quantizable_layers`",
            "see the names with --list-layers",
        ),
        ("dq-quantize", "choose another `folder`", "choose another --out"),
        (
            "dq-quantize",
            "cannot make m.pt.resume: Not a directory; choose another `resume_dir` or use `resume_dir=None`",
            "choose another --out or use --no-resume",
        ),
        ("dq-verify", f"layer: {GRAPH_ONLY}", "(dq-build, then dq-verify --engine unet.plan)"),
        ("dq-verify", "nothing to prove exact; expected one or no `exact`", "expected one or no --exact"),
        ("dq-verify", "; give the float model's folder as `model`", "the float model's folder as --float-model"),
        ("dq-bench", "again with dq-build `compute_capabilities` 9.0", "with dq-build --compute-capability 9.0"),
        ("dq-import", "`reader` got 'eda', expected", "--from got 'eda', expected"),
        ("dq-import", "differ from `float_model`; expected", "differ from --float; expected"),
        ("dq-sample", 'use `scheduler="ddim"`', "use --scheduler ddim"),
        ("dq-bench", "`batches` got 8", "--batch got 8"),
    ],
)
def test_each_command_has_its_own_table(name, message, said):
    assert with_flags(message, name).endswith(said)


def test_a_flag_that_another_command_has_is_said_too():
    assert with_flags("build it with `shapes`", "dq-verify") == "build it with --shapes"


def test_what_is_switched_off_has_a_flag_of_its_own():
    assert with_flags("use `hash_check=False` or `hash_check=True`", "dq-info") == "use --no-hash-check or --hash-check"
    assert with_flags("`hash_check` is on", "dq-info") == "--hash-check is on"
    assert with_flags("use `resume_dir=None`", "dq-quantize") == "use --no-resume"


@pytest.mark.parametrize("name", FLAGS)
def test_what_was_said_in_flags_is_not_said_again(name):
    """So a text may be translated where it is shown and once more where the command ends."""
    for file, text, _ in texts_of_the_library():
        said = with_flags(text, name)
        assert with_flags(said, name) == said, file


@pytest.mark.parametrize("name", FLAGS)
def test_no_option_is_left_in_what_a_command_says(name):
    left = [
        (file, match[0])
        for file, text, is_docstring in texts_of_the_library()
        if not is_docstring and (file not in ONE_COMMAND or name == ONE_COMMAND[file])
        for match in REFERENCE.finditer(with_flags(text, name))
        if match[0] not in NO_OPTIONS
    ]
    assert not left


def test_what_the_user_typed_in_backticks_stays():
    message = "output a `mode` b.pt is missing; leave `target` out"
    assert with_flags(message, "dq-export", ["--out=./a `mode` b.pt"]) == message.replace("`target`", "--target")


def test_a_file_name_in_backticks_is_no_option(tmp_path):
    for name in ("a `runtime` b.onnx", "`runtime`.onnx", "`runtime` .onnx", "`runtime`"):
        done = command("build", "--onnx", tmp_path / name, "--out", tmp_path / "x.plan")
        assert done.code == 2
        assert name in done.err
        assert "--runtime" not in done.err


def test_a_library_s_own_backticks_stay():
    from dq_deploy.cli.frame.failures import failure_of, running

    try:
        try:
            raise ValueError("wants `mode` set")
        except ValueError as cause:
            raise LibraryError(f"layer 3: {cause}; choose another `target`") from cause
    except LibraryError as error:
        with running("dq-export", []):
            said, code = failure_of(error, "dq-export")
    assert said == "layer 3: wants `mode` set; choose another --target"
    assert code == 2


def test_an_error_is_said_in_flags_at_the_end_of_a_command(tmp_path):
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions

    with pytest.raises(OptionError, match=r"^`time_limit_s` got -1\.0, expected"):
        BuildOptions(time_limit_s=-1.0)
    (tmp_path / "x.onnx").touch()
    done = command("build", "--onnx", tmp_path / "x.onnx", "--out", tmp_path / "x.plan", "--time-limit", "-1")
    assert done.err == "error: --time-limit got -1.0, expected a positive number of seconds\n"
