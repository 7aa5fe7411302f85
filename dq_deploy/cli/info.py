"""`dq-info`: what a quantized model, an exported engine file or a plan is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dq_deploy.artifacts import with_files_beside
from dq_deploy.cli.frame import check_outputs, in_flags_throughout, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck
from dq_deploy.errors import OptionError


def info(
    path: Annotated[
        Path,
        typer.Argument(help="Record (.pt, .safetensors), engine (.onnx, .dqn) or plan (.plan)."),
    ],
    native: Annotated[
        bool, typer.Option("--native", help="Of a record also how the native engine would run it on this machine.")
    ] = False,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write what is shown, and more, as JSON.")] = None,
) -> None:
    """Show what a quantized model, an exported engine file or a plan holds."""
    check_outputs(json, inputs=(path,))
    from dq_deploy.manifest.plan import is_plan
    from dq_deploy.open_engine import NATIVE_SUFFIXES, PROGRAM_SUFFIX, checked_engine

    if path.is_dir():
        checked_engine(path)  # says which file in it is meant
    if native and path.suffix not in NATIVE_SUFFIXES:
        raise OptionError(f"--native goes with a record ({' or '.join(NATIVE_SUFFIXES)}), got {path}; leave it out")
    show: Callable[[dict[str, Any]], None]
    if path.suffix == PROGRAM_SUFFIX:
        from dq_deploy.cli.text.info.program import show_program, summary_of_program

        summary = summary_of_program(path, hash_check=hash_check)
        show = show_program
    elif path.suffix not in NATIVE_SUFFIXES and is_plan(path):
        from dq_deploy.cli.text.info.plan import show_plan, summary_of_plan
        from dq_deploy.manifest.plan import read_plan_manifest

        plan = in_flags_throughout(read_plan_manifest(path, check_hash=hash_check))
        summary = summary_of_plan(path, plan)
        show = partial(show_plan, manifest=plan)
    elif path.suffix == ".onnx":
        from dq_deploy.cli.text.info.engine import show_engine, summary_of_engine
        from dq_deploy.graph.onnx_file import read_manifest

        path = with_files_beside(path)
        manifest = in_flags_throughout(read_manifest(path, hash_check=hash_check))
        summary = summary_of_engine(path, manifest)
        show = partial(show_engine, manifest=manifest)
    else:
        from dq_deploy.cli.text.info.record import show_record, summary_of_record

        summary = summary_of_record(path, hash_check=hash_check)
        show = show_record
    if native:
        from dq_deploy.cli.text.info.native import show_native, summary_of_native

        summary["native"] = in_flags_throughout(summary_of_native(path, hash_check=hash_check))
    if json is not None:
        write_json(json, summary)
    show(summary)
    if native:
        show_native(summary["native"])


def main() -> None:
    """Entry of the console script."""
    run(info)


if __name__ == "__main__":
    main()
