"""Ahead-of-time compilation: cubins of kernel calls for any architecture, on a machine without a GPU.

`python -m dq_kernels.gpu.ahead_of_time.compile --all --out DIR` compiles every call of the cases' shapes for all
architectures and writes DIR/<key>.cubin and DIR/cubins.json, which `dq_kernels.gpu.ahead_of_time.cubins` loads
without torch and without triton.
A cubin for sm_80 also runs on sm_86 and sm_89; those for sm_90, 100 and 120 (compiled as sm_90a and so on) only there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu import ARCHITECTURES
from dq_kernels.gpu.ahead_of_time.machine_code import disassemble, resources
from dq_kernels.gpu.launch.calls import KERNELS, KernelCall, argument_types, key_of
from dq_kernels.gpu.tune.configurations import SHARED_BYTES

INDEX = "cubins.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled call.

    Attributes:
        key: of `key_of`.
        cubin: machine code.
        ptx: what it was made from.
        entry: what a launch needs (symbol, shared_bytes, warps, arguments in their order) and what is worth knowing
            (registers, stack_bytes, products, loop).
    """

    key: str
    cubin: bytes
    ptx: str
    entry: dict[str, Any]


def source_of(call: KernelCall) -> tuple[Any, list[tuple[str, str]]]:
    """Triton's source of a call, and the arguments of the compiled kernel in their order."""
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(KERNELS[call.kernel]), call.kernel)
    types = argument_types(call)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(call.constants)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    order: list[tuple[str, str]] = []
    for place, name in enumerate(kernel.arg_names):
        kind = types.get(name, "none")
        if name in constants or kind == "none":
            signature[name] = "constexpr"
            constants.setdefault(name, None)
            continue
        signature[name] = kind.split(":")[0]
        order.append((name, kind))
        if kind.startswith("*") or kind.endswith(":16"):
            attributes[place,] = [["tt.divisibility", 16]]
    unknown = set(types) - set(kernel.arg_names)
    if unknown:
        raise KernelInputError(f"{call.kernel} has no arguments {sorted(unknown)}")
    return ASTSource(kernel, signature, constants, attributes), order


def compile_call(call: KernelCall, architecture: int) -> Compiled:
    """Compile for one architecture.

    Raises:
        KernelInputError: the kernels of this process are interpreted, the code asks for more shared memory than the
            architecture has, or for scratch memory, which launches give none of.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    if triton.knobs.runtime.interpret:
        raise KernelInputError(
            "TRITON_INTERPRET is set, expected a process without it; interpreted kernels do not compile"
        )
    source, order = source_of(call)
    options = {"num_warps": call.warps, "num_stages": call.stages, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    facts = built.metadata
    if facts.shared > SHARED_BYTES[architecture]:
        raise KernelInputError(
            f"{call.kernel} for sm_{architecture} needs {facts.shared} bytes of shared memory, at most "
            f"{SHARED_BYTES[architecture]} are there; use smaller blocks or fewer stages: {dict(call.constants)}"
        )
    if getattr(facts, "global_scratch_size", 0) or getattr(facts, "profile_scratch_size", 0):
        raise KernelInputError(f"{call.kernel} asks for scratch memory, launches give none")
    cubin = built.asm["cubin"]
    code = disassemble(cubin)
    key = key_of(call, architecture)
    entry = {
        "kernel": call.kernel,
        "symbol": facts.name,
        "architecture": architecture,
        "warps": call.warps,
        "stages": call.stages,
        "shared_bytes": facts.shared,
        "arguments": [list(pair) for pair in order],
        "constants": dict(call.constants),
        **resources(cubin),
        "spills": code.spills,
        "products": code.products,
        "loop_instructions": code.loop.total(),
        "instructions": code.counts.total(),
    }
    return Compiled(key=key, cubin=cubin, ptx=built.asm["ptx"], entry=entry)


def unique(calls: Iterable[KernelCall], architecture: int) -> list[KernelCall]:
    """One call of each key."""
    return list({key_of(call, architecture): call for call in calls}.values())


def store(compiled: Iterable[Compiled], folder: Path) -> Path:
    """Write cubins and their index, adding to one that is there; the index is written last."""
    import triton

    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    entries: dict[str, Any] = {}
    if index.is_file():
        entries = json.loads(index.read_text(encoding="utf-8"))["cubins"]
    for one in compiled:
        (folder / f"{one.key}.cubin").write_bytes(one.cubin)
        entries[one.key] = {**one.entry, "sha256": hashlib.sha256(one.cubin).hexdigest()}
    content = {"format": FORMAT, "triton": triton.__version__, "cubins": dict(sorted(entries.items()))}
    partial = index.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(index)
    return index


def _compile_pair(pair: tuple[KernelCall, int]) -> Compiled:
    return compile_call(*pair)


def compile_all(pairs: Sequence[tuple[KernelCall, int]], jobs: int) -> Iterable[Compiled]:
    """Compile (call, architecture) pairs in several processes."""
    if jobs == 1:
        yield from map(_compile_pair, pairs)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_compile_pair, pairs)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m dq_kernels.gpu.ahead_of_time.compile`."""
    from dq_kernels.gpu.ahead_of_time.shapes import MODELS, calls_of_model

    parser = argparse.ArgumentParser(prog="python -m dq_kernels.gpu.ahead_of_time.compile", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="the shapes of all models")
    what.add_argument("--model", choices=MODELS, help="the shapes of one model")
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)), help="such as 80,90")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, required=True, help="folder for cubins and cubins.json")
    options = parser.parse_args(argv)
    try:
        architectures = [int(text) for text in options.architectures.split(",")]
        unknown = set(architectures) - set(ARCHITECTURES)
        if unknown:
            raise KernelInputError(f"--architectures has {sorted(unknown)}, expected some of {list(ARCHITECTURES)}")
        pairs = []
        for architecture in architectures:
            models = MODELS if options.all else (options.model,)
            calls = [c for model in models for c in calls_of_model(model, architecture, options.dtype)]
            pairs += [(call, architecture) for call in unique(calls, architecture)]
        done = []
        for number, one in enumerate(compile_all(pairs, max(1, options.jobs)), 1):
            entry = one.entry
            print(
                f"{number}/{len(pairs)} sm_{entry['architecture']} {entry['kernel']}: {entry['registers']} registers, "
                f"{entry['shared_bytes']} bytes shared, {entry['spills']} spills, {entry['products']}",
                file=sys.stderr,
            )
            done.append(one)
        print(store(done, options.out))
    except (KernelInputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
