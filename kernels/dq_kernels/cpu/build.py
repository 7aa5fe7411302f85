"""Compiles the CPU kernels into one shared library with the system's C++ compiler.

Used by the package's build, by the tests that compile with sanitizers, and by hand after an edit::

    python -m dq_kernels.cpu.build [--target FILE] [FLAG ...]
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARY = PACKAGE / "_cpu.so"
LIBRARY_VARIABLE = "DQ_KERNELS_LIBRARY"
"""Environment variable with another library to load, as one compiled with sanitizers; for tests."""
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-fno-math-errno"),
    *("-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-Werror=return-type"),
)
"""-ffp-contract=off: a product and a sum that become one instruction round once, the reference rounds twice."""
HEADERS = """\
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
"""
"""What nearly every source includes; reading it takes longer than compiling most of them, so g++ reads it once."""
FEWEST_FOR_HEADERS = 4
"""Sources from which on that is worth it."""


class BuildError(RuntimeError):
    """The compiler is missing or refused a source; the message says which."""


def sources() -> list[Path]:
    """C++ files of the library, in a fixed order."""
    return sorted(PACKAGE.rglob("*.cpp"))


def library_path() -> Path:
    """The library to load: what `LIBRARY_VARIABLE` names, else the package's own."""
    named = os.environ.get(LIBRARY_VARIABLE)
    return Path(named) if named else LIBRARY


def compiler() -> list[str]:
    """The C++ compiler: $CXX, else g++, else clang++.

    Raises:
        BuildError: none is found.
    """
    wanted = os.environ.get("CXX")
    if wanted:
        return shlex.split(wanted)
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found (g++ or clang++), expected one to build the CPU kernels; or set CXX")


def build(target: Path = LIBRARY, *, flags: Sequence[str] = (), files: Sequence[Path] | None = None) -> Path:
    """Compile the kernels to a shared library, or to a program where `files` hold a main.

    Args:
        target: file to write; replaced only once everything is compiled.
        flags: further flags, behind `FLAGS` and before those of $CXXFLAGS.
        files: sources instead of `sources()`; a program is linked where -shared is not wanted ("-no-shared").

    Raises:
        BuildError: no compiler, or one that fails; its first error line is in the message.
    """
    command = compiler()
    shared = () if "-no-shared" in flags else ("-shared",)
    wanted = [flag for flag in flags if flag != "-no-shared"] + shlex.split(os.environ.get("CXXFLAGS", ""))
    found = list(sources() if files is None else files)
    with tempfile.TemporaryDirectory(prefix="dq-kernels-") as folder:
        objects = [Path(folder) / f"{source.parent.name}-{source.stem}.o" for source in found]
        base = [*command, *FLAGS, *wanted, f"-I{PACKAGE / 'cpu'}", f"-I{PACKAGE}"]
        if len(found) >= FEWEST_FOR_HEADERS:
            base += _headers(base, Path(folder))
        jobs = [[*base, "-c", str(s), "-o", str(o)] for s, o in zip(found, objects, strict=True)]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(_run, jobs))
        out = Path(folder) / target.name
        _run([*command, *FLAGS, *wanted, *shared, "-o", str(out), *map(str, objects)])
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(out, staged)
        staged.replace(target)
    return target


def _headers(base: Sequence[str], folder: Path) -> list[str]:
    """Flags by which the sources compiled with `base` start from `HEADERS`; none for clang, which takes other ones."""
    if "clang" in Path(base[0]).name:
        return []
    header = folder / "headers.h"
    header.write_text(HEADERS)
    _run([*base, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
    return ["-include", str(header)]


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        why = f"C++ compiler {command[0]} cannot be started: {error.strerror}; set CXX to another"
        raise BuildError(why) from error
    if done.returncode:
        lines = done.stderr.splitlines() or ["no output"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{command[0]} ended with code {done.returncode}: {first}")


def main() -> None:
    """Build in place, or to the file of --target; other arguments are flags of the compiler."""
    flags, target = sys.argv[1:], LIBRARY
    if "--target" in flags[:-1]:
        at = flags.index("--target")
        target = Path(flags[at + 1])
        del flags[at : at + 2]
    try:
        print(build(target, flags=flags))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
