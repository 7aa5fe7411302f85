"""The house rules that a machine can check; each test names every offender at once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.house import (
    BENCHMARKS,
    KERNELS,
    PACKAGE,
    ROOT,
    aliases,
    circles,
    functions,
    imported,
    lines_of,
    modules,
    name_of,
    sources,
    tree_of,
)

LEVELS = (
    ("errors", "artifacts", "processes", "plain_yaml", "recent", "version", "numerics"),
    ("manifest", "record"),
    ("simulation", "graph", "readers", "models", "calibration"),
    ("methods", "targets"),
    ("engines",),
    ("native",),
    ("open_engine",),
    ("verify", "quality", "bench", "pipelines"),
    ("comparison",),
    ("serve",),
    ("cli",),
)
"""Rooms of dq_deploy: one imports only from the levels before its own, and from its own level never both ways."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

HEAVY = {"torch", "diffusers", "onnxruntime", "openvino", "matplotlib", "skimage", "triton"}
HEAVY |= {"tensorrt", "tensorrt_rtx", "polygraphy", "cuda", "pycuda", "pynvml"}
TORCH_FREE = {"record": {"record/files/torch_file.py"}, "manifest": set(), "graph": {"graph/trace.py"}}
"""Rooms without torch, and their files that may have it."""

MAX_FILES = 12
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
LONG_KERNELS = {
    "kernels/dq_kernels/group_norm_silu_quantize/triton_kernel.py": {"group_norm_silu_quantize_kernel"},
    "kernels/dq_kernels/int_conv2d/triton_kernel.py": {"int_conv2d_kernel"},
    "kernels/dq_kernels/int_linear/triton_kernel.py": {"int_linear_kernel"},
    "kernels/dq_kernels/layer_norm_quantize/triton_kernel.py": {"layer_norm_quantize_kernel"},
}
"""Triton compiles a kernel as one function: what would be cut off can return nothing but blocks."""

VAGUE = {"utils", "helpers", "common", "manager", "info"}
ALL_CODE = ("dq_deploy", "kernels", "benchmarks", "examples", "tests")


def refuse(rule: str, offenders: Iterable[str]) -> None:
    """Fail with every offender, a line each."""
    found = sorted(offenders)
    assert not found, f"{rule}; {len(found)} do not:\n  " + "\n  ".join(found)


def room_of(path: Path) -> str:
    """First part of a path inside its package."""
    return path.relative_to(BENCHMARKS if path.is_relative_to(BENCHMARKS) else PACKAGE).parts[0].removesuffix(".py")


def loaded_by(code: str) -> list[str]:
    """Heavy libraries that a new Python has loaded after some code."""
    code = f"import sys\n{code}\nprint(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_room_has_a_level():
    rooms = {room_of(path) for path in sources("dq_deploy")} - {"__init__"}
    refuse("every file and folder of dq_deploy stands in LEVELS", rooms - LEVEL.keys())


def test_a_room_imports_only_from_its_left():
    offenders = set()
    for path in sources("dq_deploy"):
        own = room_of(path)
        for name in imported(path):
            room = name.split(".")[1] if name.startswith("dq_deploy.") else own
            if own != "__init__" and LEVEL.get(room, -1) > LEVEL[own]:
                offenders.add(f"{name_of(path)}: {name}")
    refuse("a file imports only rooms on the left of its own", offenders)


@pytest.mark.parametrize("package", ["dq_deploy", "benchmarks"])
def test_no_two_rooms_import_each_other(package):
    uses: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for path in sources(package):
        for name in imported(path):
            if name.startswith(f"{package}.") and name.split(".")[1] != room_of(path):
                uses[room_of(path), name.split(".")[1]].add(name_of(path))
    both = {(a, b) for a, b in uses if a < b and (b, a) in uses}
    refuse(
        "of two rooms one at most imports the other",
        (f"{a} and {b}: {', '.join(sorted(min(uses[a, b], uses[b, a], key=len)))}" for a, b in both),
    )


def test_no_files_import_each_other_in_a_circle():
    graph = {name: imported(path, types=False) & modules().keys() for name, path in modules().items()}
    refuse("imports have no circle", (", ".join(circle) for circle in circles(graph)))


def test_a_circle_of_any_length_is_found():
    chain = {str(i): {str(i + 1)} for i in range(4)} | {"4": {"2"}, "5": set()}
    assert circles(chain) == [["2", "3", "4"]]


def test_imports_are_absolute():
    refuse(
        "imports name the whole path",
        (
            f"{name_of(path)}:{node.lineno}"
            for path in sources(*ALL_CODE)
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.ImportFrom) and node.level
        ),
    )


def test_nothing_imports_the_benchmarks():
    users = {path: imported(path) for path in sources("dq_deploy", "kernels", "examples")}
    refuse(
        "benchmarks are imported by benchmarks alone",
        (name_of(path) for path, names in users.items() if any(n.split(".")[0] == "benchmarks" for n in names)),
    )


def test_the_kernels_import_nothing_of_the_library():
    refuse(
        "dq_kernels imports nothing of dq_deploy",
        (name_of(p) for p in sources("kernels") if any(n.split(".")[0] == "dq_deploy" for n in imported(p))),
    )


def test_the_kernels_import_torch_and_triton_in_few_places():
    allowed = {"torch": "torch_ops.py", "triton": "triton_kernel.py"}
    refuse(
        "outside gpu/, torch is imported in torch_ops.py and triton in triton_kernel.py",
        (
            f"{name_of(path)}: {name}"
            for path in sources("kernels")
            if path.relative_to(KERNELS).parts[0] != "gpu"
            for name in {name.split(".")[0] for name in imported(path)} & HEAVY
            if allowed.get(name) != path.name
        ),
    )


def test_record_manifest_and_graph_import_no_torch():
    refuse(
        "record, manifest and graph import no torch but in one file each",
        (
            name_of(path)
            for room, allowed in TORCH_FREE.items()
            for path in sources(f"dq_deploy/{room}")
            if any(name.split(".")[0] == "torch" for name in imported(path, types=False))
            and str(path.relative_to(PACKAGE)) not in allowed
        ),
    )


def test_importing_the_library_or_a_room_loads_no_heavy_library():
    """Files inside a room may, where they define torch modules; the room imports those inside its functions."""
    rooms = {f"dq_deploy.{room_of(path)}" for path in sources("dq_deploy")} - {"dq_deploy.__init__"}
    assert loaded_by(f"import dq_deploy, {', '.join(sorted(rooms))}") == []


def test_importing_a_kernels_op_loads_no_heavy_library():
    ops = sorted(f"dq_kernels.{path.parent.name}" for path in KERNELS.glob("*/__init__.py"))
    assert loaded_by(f"import {', '.join(ops)}") == []


def test_diffusers_can_be_imported_from_the_repository_root():
    """diffusers imports a package named `kernels` where it finds one; the folder of that name must not be one."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    loaded_by("sys.path.insert(0, ''); import diffusers; from diffusers import UNet2DModel, DDIMScheduler")


def test_folders_hold_few_files():
    counts: defaultdict[Path, int] = defaultdict(int)
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.parent.name != "__pycache__":
            counts[path.parent] += 1
    refuse(
        f"a folder of dq_deploy holds at most {MAX_FILES} files",
        (f"{name_of(folder)}: {count}" for folder, count in counts.items() if count > MAX_FILES),
    )


def test_files_are_short():
    cpp = [path for kind in ("cpp", "h", "inc") for path in (ROOT / "kernels").rglob(f"*.{kind}")]
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in (*sources(*ALL_CODE), *cpp)}
    refuse(
        f"a file has at most {MAX_FILE_LINES} lines",
        (f"{name_of(path)}: {lines}" for path, lines in lengths.items() if lines > MAX_FILE_LINES),
    )


def test_functions_are_short():
    refuse(
        f"a function has at most {MAX_FUNCTION_LINES} lines, its signature counted and its docstring not",
        (
            f"{name_of(path)}:{node.lineno} {node.name}: {lines_of(node)}"
            for path in sources(*ALL_CODE)
            for node in functions(path)
            if lines_of(node) > MAX_FUNCTION_LINES and node.name not in LONG_KERNELS.get(name_of(path), ())
        ),
    )


def test_no_module_has_a_vague_name():
    refuse(
        "a file's name says what is in it",
        (
            name_of(p)
            for p in sources("dq_deploy", "kernels", "benchmarks")
            if p.stem in VAGUE and p.parent.name != "cli"
        ),
    )


def test_no_type_error_is_ignored():
    refuse(
        "types hold without `type: ignore`",
        (
            f"{name_of(path)}:{number}"
            for path in sources("dq_deploy", "kernels")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if re.search(r"#\s*type:\s*ignore", line)
        ),
    )


def test_an_alias_is_defined_once():
    places: defaultdict[str, set[str]] = defaultdict(set)
    for path in sources("dq_deploy", "kernels"):
        package = path.relative_to(ROOT).parts[0]  # dq_kernels imports nothing of dq_deploy, not even an alias
        for name, value in aliases(path):
            places[f"{package}: {name}"].add(name_of(path))
            if value.startswith("NDArray"):
                places[f"{package}: {value}"].add(f"{name_of(path)} {name}")
    several = {alias: found for alias, found in places.items() if len(found) > 1}
    refuse("an alias of a type is defined once", (f"{k}: {', '.join(sorted(v))}" for k, v in several.items()))


LIBRARY = [path for path in sources("dq_deploy") if room_of(path) != "cli"]


def test_no_library_file_prints():
    offenders = []
    for path in LIBRARY:
        offenders += [f"{name_of(path)}: {name}" for name in imported(path) if name.split(".")[0] in ("rich", "typer")]
        offenders += [
            f"{name_of(path)}:{node.lineno} print"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    refuse("printing is done by the command line", offenders)


def test_a_package_offers_no_name_that_one_of_its_files_hides():
    """`from x import y` would give the function or the file, depending on what was imported before."""
    hidden = []
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent == PACKAGE:
            continue  # the public API; the room `verify` can be called, see tests/test_startup.py
        tree = tree_of(init)
        names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        names |= {
            a.asname or a.name
            for n in tree.body
            if isinstance(n, ast.ImportFrom) and n.module != ".".join(init.parent.relative_to(ROOT).parts)
            for a in n.names
        }
        hidden += [f"{name_of(init)}: {p.stem}" for p in init.parent.iterdir() if p.stem in names]
    refuse("a name is a file or something the package offers, not both", hidden)
