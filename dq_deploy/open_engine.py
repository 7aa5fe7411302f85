"""A path to its Runner: `dq_deploy.open_engine(path)`, which is this file and its function."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import check_no_stream, is_utf8, with_files_beside
from dq_deploy.engines.options import NativeOptions, OnnxRuntimeOptions, OpenVinoOptions, PlanOptions
from dq_deploy.engines.tensorrt.library import RUNTIMES
from dq_deploy.errors import FileProblemError, InputError, OptionError, RepackedWarning
from dq_deploy.manifest.plan import is_plan, read_plan_manifest
from dq_deploy.native.file import SUFFIX
from dq_deploy.processes.threads import check_threads

if TYPE_CHECKING:
    from dq_deploy.engines.base import Runner
    from dq_deploy.manifest.values import EngineManifest

GRAPH_TARGETS = RUNTIMES
"""Targets whose ONNX file is not what runs: a plan is built from it."""

ENGINES = ("onnxruntime", "openvino", *RUNTIMES, "native")

RECORD_SUFFIXES = (".pt", ".safetensors")
"""Files of records, which the native engine runs as they are."""

PROGRAM_SUFFIX = SUFFIX
"""Of program files."""

NATIVE_SUFFIXES = (*RECORD_SUFFIXES, PROGRAM_SUFFIX)
"""Files the native engine runs: records themselves, and program files, which hold one."""

_DENOISERS = ("unet", "transformer")
"""Where the denoiser lies in a folder that was written for another tool."""


def open_engine(
    path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    finite_check: bool = True,
    optimized_model_path: str | Path | None = None,
    require_manifest: bool = True,
    optimize: bool = True,
    isa: str | None = None,
    device: str | None = None,
    attention: str | None = None,
    hash_check: bool = True,
) -> Runner:
    """Open an exported engine, or a record as an engine; use it as a context manager.

    A program file whose weights are packed for another instruction set than runs is packed anew, and a
    `RepackedWarning` says so.

    Args:
        path: ONNX file, a plan of TensorRT or TensorRT-RTX, or a record or a program file of one, which the native
            engine runs.
        engine: one of `ENGINES`; by default what the manifest's target says, for a plan the runtime it was built by.
        threads: threads of one run; None lets the engine decide. A plan runs on a GPU and has none.
        finite_check: refuse NaN and infinity in inputs and outputs.
        optimized_model_path: where to write the graph the engine really runs; not of a plan.
        require_manifest: False opens a plain ONNX file too, with no manifest.
        optimize: False runs the nodes of an ONNX file one by one as they stand, on ONNX Runtime; so are always those
            of a graph for TensorRT, whose exactness ONNX Runtime's own rewrites would not keep.
        isa: instruction set of the native engine, a name of `dq_kernels.cpu.structs.ISAS`; None takes the best there
            is, of a program file the one it is packed for. Other engines choose for themselves.
        device: of the native engine, one of `native.devices.DEVICES`; None is auto: a GPU that can run it, else the
            CPU.
        attention: what the native engine on a CPU computes attention's two products in, one of
            `engines.options.ATTENTION`; None is float32. No other engine has a choice.
        hash_check: refuse a file whose content is not what was written, by the hashes of its manifest or record;
            half a second for 1 GB.

    Raises:
        FileProblemError: missing, damaged or foreign file; a plan of another version or for another GPU.
        MissingDependencyError: the engine's library is not installed; for a plan, no driver.
        OptionError: an engine that does not exist or does not run this file.
    """
    path = checked_engine(path)
    _check_options(engine, threads)
    optimized = None if optimized_model_path is None else Path(optimized_model_path)
    if path.suffix in NATIVE_SUFFIXES:
        own = NativeOptions(
            threads=threads,
            isa=isa,
            device="auto" if device is None else device,
            attention=attention,
            finite_check=finite_check,
            hash_check=hash_check,
        )
        opened = _open_program if path.suffix == PROGRAM_SUFFIX else _open_record
        return opened(path, engine, own, optimized)
    for name, value in (("device", device), ("isa", isa), ("attention", attention)):
        if value is not None:
            raise OptionError(
                f"{name} is {value!r} for {path}, expected none: only the native engine can be told its own"
            )
    if engine == "native":
        raise _native_needs_a_record(path)
    path = with_files_beside(path)
    if is_plan(path):
        return _open_plan(path, engine, PlanOptions(finite_check=finite_check, hash_check=hash_check), optimized)
    if not is_utf8(path):
        raise FileProblemError(f"the name {path} is no UTF-8, which the engine's library cannot open; rename it")
    # onnx takes 50 MiB, which a plan and a record do without
    from dq_deploy.graph.onnx_file import read_manifest, read_manifest_if_any

    manifest = (read_manifest if require_manifest else read_manifest_if_any)(path, hash_check=hash_check)
    graph = OnnxRuntimeOptions(
        threads=threads, finite_check=finite_check, optimized_model_path=optimized, optimize=optimize
    )
    return _open_graph(path, engine, manifest, graph)


def checked_engine(path: str | Path) -> Path:
    """The path of an engine, whatever kind it is of.

    Raises:
        InputError: no path.
        FileProblemError: a folder, a pipe or a device.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"engine is a {type(path).__name__}, expected the path of an ONNX file, a plan or a record")
    path = Path(path)
    if path.is_dir():
        inside = next((file for part in _DENOISERS if (file := path / part / "model.onnx").is_file()), None)
        advice = "" if inside is None else f"; its denoiser is meant: give {inside}"
        raise FileProblemError(f"engine {path} is a folder, expected an ONNX file, a plan or a record{advice}")
    check_no_stream(path)
    return path


def _check_options(engine: str | None, threads: int | None) -> None:
    check_threads(threads)
    _check_engine(engine)


def _native_needs_a_record(path: Path) -> OptionError:
    return OptionError(
        f"engine native runs records ({' or '.join(RECORD_SUFFIXES)}) and program files ({PROGRAM_SUFFIX}), not "
        f"{path}; give the record"
    )


def _check_engine(engine: str | None) -> None:
    if engine is not None and engine not in ENGINES:
        raise OptionError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")


def _open_program(path: Path, engine: str | None, options: NativeOptions, optimized: Path | None) -> Runner:
    if engine not in (None, "native"):
        raise OptionError(f"{path} is a program file, which the engine native runs; export its record for {engine}")
    if optimized is not None:
        raise OptionError(f"program file {path} has no graph to write; the native engine runs it as it is")
    if options.device not in ("auto", "cpu"):
        raise OptionError(f"device is {options.device!r} for program file {path}, which runs on a CPU; give its record")
    from dq_deploy.native.file.opening import read_program_file

    held = read_program_file(path, hash_check=options.hash_check)
    from dq_deploy.native.runner import NativeRunner

    runner = NativeRunner(
        held,
        threads=options.threads,
        isa=options.isa,
        attention=options.attention,
        finite_check=options.finite_check,
    )
    if runner.repacked_from:
        warnings.warn(
            f"{path} is packed for {held.isa}, this runs on {runner.executor.context.isa}: its weights were packed "
            "anew; export it for that instruction set to open it at once",
            RepackedWarning,
            stacklevel=4,
        )
    return runner


def _open_record(path: Path, engine: str | None, options: NativeOptions, optimized: Path | None) -> Runner:
    from dq_deploy.native.devices import chosen_device

    if engine not in (None, "native"):
        raise OptionError(f"{path} is a record, which the engine native runs; export it first to run it on {engine}")
    if optimized is not None:
        raise OptionError(f"record {path} has no graph to write; the native engine runs it as it is")
    if chosen_device(options.wanted_device) == "cuda":
        if options.attention is not None:
            raise OptionError(
                f"attention is {options.attention!r} on a GPU, where it is of the float type of the rest; leave it "
                "out, or give device cpu"
            )
        from dq_deploy.native.cuda.runner import NativeCudaRunner

        return NativeCudaRunner(path, finite_check=options.finite_check, hash_check=options.hash_check)
    from dq_deploy.native.runner import NativeRunner

    return NativeRunner(
        path,
        threads=options.threads,
        isa=options.isa,
        attention=options.attention,
        finite_check=options.finite_check,
        hash_check=options.hash_check,
    )


def _open_plan(path: Path, engine: str | None, options: PlanOptions, optimized: Path | None) -> Runner:
    manifest = read_plan_manifest(path, check_hash=options.hash_check)
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner

    if engine is not None and engine != manifest.runtime:
        raise OptionError(f"engine is {engine!r}, expected {manifest.runtime}, by which plan {path} was built")
    if optimized is not None:
        raise OptionError(f"plan {path} has no graph to write; dq-verify `engine` reads what its layers became")
    return TensorRtRunner(path, manifest, finite_check=options.finite_check)


def _open_graph(path: Path, engine: str | None, manifest: EngineManifest | None, options: OnnxRuntimeOptions) -> Runner:
    if graph_engine(path, engine, manifest) == "onnxruntime":
        from dq_deploy.engines.onnxruntime import OnnxRuntimeRunner

        as_it_stands = manifest is not None and manifest.target in GRAPH_TARGETS
        return OnnxRuntimeRunner(path, manifest, replace(options, optimize=options.optimize and not as_it_stands))
    from dq_deploy.engines.openvino import OpenVinoRunner

    own = OpenVinoOptions(
        threads=options.threads,
        finite_check=options.finite_check,
        optimized_model_path=options.optimized_model_path,
    )
    return OpenVinoRunner(path, manifest, own)


def graph_engine(path: Path, engine: str | None, manifest: EngineManifest | None) -> str:
    """The engine that runs an ONNX file, `onnxruntime` or `openvino`.

    Args:
        path: of the file, for messages.
        engine: the one asked for; None takes the manifest's target, or ONNX Runtime where there is no manifest.
        manifest: of the file.

    Raises:
        OptionError: there is no such engine, or it does not run ONNX files.
    """
    _check_engine(engine)
    if engine == "native":
        raise _native_needs_a_record(path)
    name = engine or (manifest.target if manifest is not None else "onnxruntime")
    if name in ("onnxruntime", "openvino"):
        return name
    made_for = "no named engine" if manifest is None else manifest.target
    if made_for != name:
        raise OptionError(
            f"{name} runs plans, which dq-build makes, and {path} is an ONNX file for {made_for}; expected the runtime "
            "onnxruntime or openvino"
        )
    raise OptionError(f"{path} is an ONNX file for {name}, which runs plans; build one with dq-build `onnx` {path}")


class _CallableModule(ModuleType):
    """This file, which can be called like its function: `dq_deploy.open_engine` is both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Runner:
        return open_engine(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
