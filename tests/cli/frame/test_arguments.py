"""Options of a command from the fields of a dataclass: names, defaults, order, and what reaches the function."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from dq_deploy.cli.frame.arguments import takes


@dataclass(frozen=True, kw_only=True)
class Given:
    model: Annotated[Path, typer.Option(help="A folder.")]
    steps: Annotated[int | None, typer.Option(help="How many.")] = None
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on.")] = True
    names: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None


seen: list[Given] = []


@takes(Given)
def quantize(given: Given) -> None:
    """Say what was given."""
    seen.append(given)


def run(*arguments: str) -> str:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(quantize)
    done = CliRunner().invoke(app, list(arguments))
    return done.output


def test_the_signature_is_that_of_the_fields_in_their_order() -> None:
    parameters = inspect.signature(quantize).parameters
    assert list(parameters) == ["model", "steps", "resume", "names"]
    assert parameters["model"].default is inspect.Parameter.empty
    assert (parameters["steps"].default, parameters["resume"].default) == (None, True)
    assert (quantize.__name__, quantize.__doc__) == ("quantize", "Say what was given.")


def test_the_function_gets_one_value_of_what_was_typed() -> None:
    seen.clear()
    run("--model", "m", "--no-resume", "--names", "a", "--names", "b")
    assert seen == [Given(model=Path("m"), resume=False, names=["a", "b"])]


def test_a_field_without_a_default_is_required_and_the_help_says_each() -> None:
    assert "Missing option '--model'" in run()
    told = run("--help")
    assert (
        told.index("A folder.") < told.index("How many.") < told.index("--no-resume") < told.index("May be repeated.")
    )
