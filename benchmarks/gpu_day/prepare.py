"""What a bare machine needs: files, wheels, versions, in bundles of at most 64 MiB."""

from __future__ import annotations

import importlib.metadata
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_day.engines import ROOT

BUNDLE_MIB = 64.0
SUFFIXES = (".plan", ".json", ".cubin")
"""Files of the folder that are taken along; records are made there."""
WHEELS = {
    "diffusers": "the denoisers' classes",
    "onnx": "records and graphs",
    "onnx-ir": "records and graphs",
    "onnxscript": "the exporter",
    "ml-dtypes": "bfloat16",
    "safetensors": "weights",
    "rich": "output of commands",
    "cuda-core": "GPU memory of plans",
    "cuda-bindings": "the driver",
    "cuda-pathfinder": "of both",
    "nvidia-ml-py": "GPU memory",
    "pytest": "marked tests",
    "hypothesis": "marked tests",
    "triton": "the kernels' compiler; another version compiles other code: compiled kernels (--architecture) need none",
    "tensorrt-rtx": "plans",
    "tensorrt-rtx-cu13": "plans",
    "tensorrt-rtx-cu13-bindings": "plans",
    "tensorrt-rtx-cu13-libs": "plans",
    "pycuda": "the other GPU library; built from source there",
}
"""Packages besides torch and numpy, and what for. A machine that brings one in another version uses its own."""


@dataclass(frozen=True)
class Piece:
    """Something that is taken along."""

    name: str
    mib: float
    why: str


def wheel_mib(name: str) -> float:
    """About the size of a distribution's wheel: its installed files, compressed; 0 where it is not installed."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return 0.0
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(len(zlib.compress(path.read_bytes(), 1)) for path in paths if path.is_file()) / 2**20


def version_of(name: str) -> str:
    """The installed version, or none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def tracked_mib() -> float:
    """Size of the files under version control."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def bundles(pieces: list[Piece], limit: float = BUNDLE_MIB) -> tuple[list[list[Piece]], list[Piece]]:
    """Pieces in as few bundles as first-fit gives, the largest first; and those that fit into none."""
    found: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda one: -one.mib):
        if piece.mib > limit:
            continue
        for bundle in found:
            if sum(one.mib for one in bundle) + piece.mib <= limit:
                bundle.append(piece)
                break
        else:
            found.append([piece])
    return found, [piece for piece in pieces if piece.mib > limit]


def prepared(folder: Path, architecture: int | None) -> str:
    """What to take along, in words; with an architecture also the compiled kernels of the CIFAR shape in the folder."""
    pieces = [
        Piece(f"{name}=={version}", wheel_mib(name), why)
        for name, why in WHEELS.items()
        if (version := version_of(name))
    ]
    missing = [f"{name}: {why}" for name, why in WHEELS.items() if not version_of(name)]
    if architecture is not None:
        from benchmarks.gpu_day.book import Day
        from benchmarks.gpu_day.measurements import record_of
        from dq_deploy import load_record
        from dq_deploy.native.cuda.compiled import compile_record

        record = load_record(record_of(Day(folder, False), "cifar", 8))
        compile_record(record, folder / "cubins", architecture=architecture, batches=(2,), observed=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in SUFFIXES]
    own = tracked_mib()
    pieces += [Piece("files of the folder", sum(path.stat().st_size for path in files) / 2**20, "plans, kernels")]
    packed, left = bundles([piece for piece in pieces if piece.mib], BUNDLE_MIB - own)
    lines = [f"the repository's files go with each bundle: {own:.1f} MiB"]
    for number, bundle in enumerate(packed, 1):
        lines.append(f"bundle {number}, {sum(piece.mib for piece in bundle):.1f} MiB besides:")
        lines += [f"  {piece.name:45}{piece.mib:8.1f} MiB  {piece.why}" for piece in bundle]
    lines += [f"too large for a bundle: {piece.name}, {piece.mib:.0f} MiB ({piece.why})" for piece in left]
    lines += [f"not installed here, so without a version: {text}" for text in missing]
    lines.append(
        "wheels: pip download --no-deps -d wheels NAME==VERSION; there: pip install --no-index --no-deps wheels/*"
    )
    lines.append("then, part by part: python -m benchmarks.gpu_day --folder FOLDER --part NAME")
    return "\n".join(lines)
