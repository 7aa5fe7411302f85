"""The source files as the house rules see them: what each imports, how long its functions are, which texts it holds."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dq_deploy"
KERNELS = ROOT / "kernels" / "dq_kernels"
BENCHMARKS = ROOT / "benchmarks"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def sources(*folders: str) -> list[Path]:
    """Python files of some folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """Path in the repository."""
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def modules() -> dict[str, Path]:
    """Files of dq_deploy, dq_kernels and benchmarks by the dotted name that imports them."""
    found = {}
    for path in sources("dq_deploy", "kernels", "benchmarks"):
        base = ROOT / "kernels" if path.is_relative_to(KERNELS) else ROOT
        found[".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _import_nodes(tree: ast.AST, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _is_type_checking(node) and not types:
            for other in node.orelse:
                yield from _import_nodes(other, types)
        else:
            yield from _import_nodes(node, types)


def imported(path: Path, *, types: bool = True) -> set[str]:
    """Dotted names that a file imports, inside functions too; those for type checkers alone only with `types`.

    `from a.b import c` is a.b.c where that is a file of ours, else a.b.
    """
    names: set[str] = set()
    for node in _import_nodes(tree_of(path), types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
            others = len(inside) < len(node.names)
            names |= inside | ({str(node.module)} if others else set())
    return names


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other and so import in a circle, of any length (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph[name]:
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def functions(path: Path) -> Iterator[Function]:
    """Every function and method of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(node: Function) -> int:
    """Lines of a function with its signature, without its docstring and decorators."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def aliases(path: Path) -> Iterator[tuple[str, str]]:
    """Name and value of every type alias of a file: `Codes = NDArray[np.uint8]`."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, value = node.target.id, node.value
        else:
            continue
        if name[0].isupper() and not name.isupper() and _is_type(value):
            yield name, ast.unparse(value)


def _is_type(value: ast.expr) -> bool:
    """Whether an expression is of the kind that aliases have: `X[...]`, `a | b`, `torch.Tensor`."""
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.BitOr)
    if isinstance(value, ast.Attribute):
        return value.attr[0].isupper()
    return isinstance(value, ast.Subscript) and ast.unparse(value.value)[0].isupper()
