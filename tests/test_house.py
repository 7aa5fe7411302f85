"""The house rules that a machine can check: who imports whom, what imports nothing heavy, how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dq_deploy"

LEVELS = (
    ("errors", "artifacts", "version", "processes", "numerics"),
    ("manifest", "record"),
    ("simulation", "graph", "readers", "models", "calibration"),
    ("methods", "targets"),
    ("engines",),
    ("native",),
    ("open_engine",),
    ("verify", "quality", "bench", "sampling"),
    ("comparison",),
    ("serve",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# modules of one level that may build on each other, in this order
WITHIN = {
    ("errors", "numerics"),
    ("errors", "processes"),
    ("errors", "artifacts"),
    ("models", "readers"),
    ("models", "simulation"),
}

HEAVY = {"torch", "diffusers", "onnxruntime", "openvino", "matplotlib", "skimage", "triton"}
HEAVY |= {"tensorrt", "tensorrt_rtx", "polygraphy", "cuda", "pycuda", "pynvml"}

# 500 lines a file; about 60 a function, its signature and docstring not counted
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
VAGUE = {"utils", "helpers", "common", "manager", "info"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names a file imports anywhere; `from a.b import c` counts as a.b and as a.b.c."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def rooms_imported(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in imported(path) if name.startswith("dq_deploy.")}
    return found & set(LEVEL)


ROOM_FILES = [path for path in sources("dq_deploy") if path.parent != PACKAGE or path.stem in LEVEL]


def test_every_room_has_a_level():
    assert {room_of(path) for path in ROOM_FILES} <= set(LEVEL)
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))} <= set(LEVEL)


@pytest.mark.parametrize("path", ROOM_FILES, ids=name_of)
def test_a_module_imports_only_from_its_left(path):
    own = room_of(path)
    for room in rooms_imported(path) - {own}:
        fine = LEVEL[room] < LEVEL[own] or (room, own) in WITHIN
        assert fine, f"{name_of(path)} imports {room}, which is not on the left of {own}"


def test_no_two_files_import_each_other():
    modules = {}
    for path in sources("dq_deploy"):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[dotted] = {name for name in imported(path) if name.startswith("dq_deploy")}
    pairs = [(a, b) for a in modules for b in modules if a < b and b in modules[a] and a in modules[b]]
    # a package may list its own modules; the package module is not imported back for that
    real = [(a, b) for a, b in pairs if not b.startswith(f"{a}.") and a != "dq_deploy"]
    assert not real, f"files import each other: {real}"


def test_a_package_offers_no_name_that_one_of_its_files_hides():
    """`from x import y` would give the function or the file, depending on what was imported before."""
    hidden = []
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent == PACKAGE:
            continue  # the public API; the room `verify` can be called, see tests/test_startup.py
        tree = tree_of(init)
        names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        names |= {
            a.asname or a.name
            for n in tree.body
            if isinstance(n, ast.ImportFrom) and n.module != ".".join(init.parent.relative_to(ROOT).parts)
            for a in n.names
        }
        hidden += [f"{name_of(init)}: {p.stem}" for p in init.parent.iterdir() if p.stem in names]
    assert not hidden, f"these names are both a file and something the package offers: {hidden}"


def test_no_room_loads_a_heavy_library_when_it_is_imported():
    """Files inside a room may, where they define torch modules; the room imports those inside its functions."""
    rooms = [f"dq_deploy.{room}" for room in LEVEL if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()]
    code = f"import sys, {', '.join(rooms)}\nprint(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_record_and_graph_import_torch_in_one_file_each():
    for room, allowed in (("record", {"torch_file.py"}), ("graph", {"trace.py"})):
        users = {p.name for p in sources(f"dq_deploy/{room}") if any(n.split(".")[0] == "torch" for n in imported(p))}
        assert users <= allowed, f"{room} imports torch in {sorted(users - allowed)}"


def test_the_kernels_import_nothing_of_the_library():
    for path in sources("kernels"):
        assert not any(name.startswith("dq_deploy") for name in imported(path)), name_of(path)


def test_the_kernels_import_torch_and_triton_in_few_places():
    package = ROOT / "kernels" / "dq_kernels"
    allowed = {"torch": "torch_ops.py", "triton": "triton_kernel.py"}
    for path in sources("kernels"):
        heavy = {name.split(".")[0] for name in imported(path)} & HEAVY
        if path.relative_to(package).parts[0] != "gpu":
            assert all(allowed.get(name) == path.name for name in heavy), f"{name_of(path)} imports {sorted(heavy)}"


def test_no_kernel_loads_a_heavy_library_when_its_op_is_imported():
    ops = [f"dq_kernels.{p.parent.name}" for p in (ROOT / "kernels" / "dq_kernels").glob("*/__init__.py")]
    code = f"import sys, {', '.join(sorted(ops))}\nprint(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


CPP = sorted(p for suffix in ("cpp", "h", "inc") for p in (ROOT / "kernels").rglob(f"*.{suffix}"))


@pytest.mark.parametrize("path", CPP, ids=name_of)
def test_cpp_files_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{name_of(path)} has {lines} lines"


@pytest.mark.parametrize("path", sources("dq_deploy", "kernels", "examples", "benchmarks", "tests"), ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES, f"{name_of(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = body_lines(node)
            assert lines <= MAX_FUNCTION_LINES, f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines"


def test_no_module_has_a_vague_name():
    vague = [name_of(p) for p in sources("dq_deploy", "kernels") if p.stem in VAGUE and p.parent.name != "cli"]
    assert not vague, f"these names say nothing: {vague}"


def test_diffusers_can_be_imported_from_the_repository_root():
    """diffusers imports a package named `kernels` where it finds one; the folder of that name must not be one."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import sys; sys.path.insert(0, ''); import diffusers; from diffusers import UNet2DModel, DDIMScheduler"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
