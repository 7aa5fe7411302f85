"""The first day with a GPU in parts of at most 9 minutes, each of which goes on where it was stopped.

    python -m benchmarks.gpu_day --prepare                  # what to take along to a bare machine
    python -m benchmarks.gpu_day --part facts               # one part; without --part all of them, one after another
    python -m benchmarks.gpu_day --page                     # the page of what is there
    python -m benchmarks.gpu_day --rehearse                 # all parts without a GPU, small, and the page

Results stand in `<folder>/<part>.jsonl`, the page in `<folder>/page.md`. Rehearsed, never run on a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_day.book import Book, Day
from benchmarks.gpu_day.parts import BY_NAME, LIMIT_S, PARTS

RED = 3


def seconds(text: str) -> float:
    """A number of seconds above 0; argparse says which text is none."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}, expected a number of seconds above 0")
    return value


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("gpu-day"), help="records, plans, kernels and results")
    parser.add_argument("--part", action="append", choices=tuple(BY_NAME), help="repeatable; all by default")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on small shapes")
    parser.add_argument("--page", action="store_true", help="write the page and end")
    parser.add_argument("--prepare", action="store_true", help="print what to take along and end")
    parser.add_argument("--architecture", type=int, help="with --prepare: compile kernels for it, such as 90")
    parser.add_argument("--limit", type=seconds, default=LIMIT_S, help="seconds of a part")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def run_part(name: str, arguments: argparse.Namespace) -> None:
    """A part in this process."""
    capability = "9.0"
    if not arguments.rehearse:
        from dq_deploy.engines.cuda.backends import open_cuda

        capability = open_cuda().facts().compute_capability
    day = Day(arguments.folder, arguments.rehearse, capability)
    book = Book(day, name)
    BY_NAME[name].run(day, book)
    book.end()


def started(name: str, arguments: argparse.Namespace) -> int:
    """A part in a process of its own, ended at the limit; its exit code."""
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--part", name, "--folder", str(arguments.folder)]
    command += ["--in-process", *(["--rehearse"] if arguments.rehearse else [])]
    environment = dict(os.environ)
    if arguments.rehearse and BY_NAME[name].interpreted:
        environment["TRITON_INTERPRET"] = "1"
    # a session of its own: what the part started ends with it
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"{name}: stopped after {arguments.limit:.0f} s; call it again and it goes on", flush=True)
        return RED


def main(words: list[str] | None = None) -> int:
    """Do what the options ask for; 3 where a part did not come to its end."""
    from benchmarks.gpu_day.page import page

    arguments = parsed(words)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.prepare:
        from benchmarks.gpu_day.prepare import prepared

        print(prepared(arguments.folder, arguments.architecture))
        return 0
    names = arguments.part or [part.name for part in PARTS]
    if arguments.in_process:
        from dq_deploy.errors import DqError

        try:
            run_part(names[0], arguments)
        except DqError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    code, began = 0, time.perf_counter()
    for name in [] if arguments.page else names:
        code = started(name, arguments) or code
    books = {part.name: Book(Day(arguments.folder, arguments.rehearse), part.name) for part in PARTS}
    target = arguments.folder / "page.md"
    target.write_text(page(books), encoding="utf-8")
    print(f"{target}, after {time.perf_counter() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
