"""A run that is killed at random moments and continued with another number of processes ends in the same bytes.

    python -m benchmarks.sharing.kills                       # DilateQuant and gptq, 20 kills; about 20 minutes
    python -m benchmarks.sharing.kills --method gptq --kills 3

For each kill: `torchrun` with 1, 2 or 3 processes, a random process of which is killed (SIGKILL) after a random part of
the time that a whole run takes (a run that was done before does not count); then the same command with another
number, until it is done; then the bytes are compared with those of a run that was not killed. Each kill draws from the
seed, so that the same moments come again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.sharing.processes import torchrun

ROOT = Path(__file__).resolve().parents[2]


def processes_of(launcher: int) -> list[int]:
    """Those that torchrun has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            _, _, behind = (folder / "stat").read_text(encoding="utf-8").rpartition(")")
            if int(behind.split()[1]) == launcher:
                found.append(int(folder.name))
    return sorted(found)


def _wait_for_processes(started: subprocess.Popen[str]) -> None:
    while not processes_of(started.pid) and started.poll() is None:
        time.sleep(0.05)


def run(count: int, out: Path, given: argparse.Namespace, method: str) -> tuple[float, str]:
    """A whole run; returns its seconds and the hash of its record.

    Raises:
        SystemExit: it failed.
    """
    started = torchrun(count, "dq_deploy.cli.quantize", *_options(out, given, method))
    _wait_for_processes(started)
    start = time.monotonic()
    said, _ = started.communicate()
    if started.returncode:
        raise SystemExit(said)
    return time.monotonic() - start, hashlib.sha256(out.read_bytes()).hexdigest()


def killed(
    count: int, after_s: float, out: Path, given: argparse.Namespace, method: str, which: int, wanted: str
) -> str:
    """A run one process of which is killed; returns in words how it ended.

    Raises:
        SystemExit: half a file is left, or the end was said in another number of lines than one.
    """
    started = torchrun(count, "dq_deploy.cli.quantize", *_options(out, given, method))
    _wait_for_processes(started)
    time.sleep(after_s)
    ours = processes_of(started.pid)
    for process in ours[which % len(ours) :][:1] if ours else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    said, _ = started.communicate()
    if started.returncode == 0:
        return "done before"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    half = out.exists() and hashlib.sha256(out.read_bytes()).hexdigest() != wanted
    if len(lines) > 1 or half or list(out.parent.rglob("*.part")):
        raise SystemExit(f"{lines}, {sorted(out.parent.rglob('*'))}\n{said}")
    kept = len(list(out.with_name(f"{out.name}.resume").glob("block-*.safetensors")))
    return f"{kept} blocks kept, {'one line' if lines else 'no line: no process was left to say it'}"


def _options(out: Path, given: argparse.Namespace, method: str) -> list[object]:
    training = ["--iterations", 3] if method == "dilatequant" else []
    sizes = ["--samples", given.samples, "--steps", given.steps]
    return ["--model", given.model, "--method", method, *training, *sizes, "--memory-gib", 1, "--out", out]


def main() -> None:
    """Kill and continue; exits with 1 at the first record that differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "mnist-ddpm-32")
    parser.add_argument("--method", action="append", choices=("minmax", "gptq", "dilatequant"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    methods = given.method or ["dilatequant", "gptq"]
    drawn = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = {method: run(1, Path(folder) / f"{method}.pt", given, method) for method in methods}
        number = met = 0
        while met < given.kills:
            method = methods[number % len(methods)]
            seconds, wanted = whole[method]
            first, second = drawn.sample((1, 2, 3), 2)
            after, which = drawn.random() * seconds, drawn.randrange(3)
            out = Path(folder) / f"killed-{number}" / "model.pt"
            out.parent.mkdir()
            ended = killed(first, after, out, given, method, which, wanted)
            took, found = run(second, out, given, method)
            if "blocks kept" not in ended or ended.startswith("0 "):  # the run behind it was a whole one
                whole[method] = min(seconds, took), wanted
            same = found == wanted
            print(
                f"{method}, {first} then {second}, killed after {after:.1f} s, {ended}: {'same' if same else 'OTHER'}"
            )
            if not same:
                raise SystemExit(1)
            number, met = number + 1, met + (ended != "done before")


if __name__ == "__main__":
    main()
