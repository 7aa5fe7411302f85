"""The types in `tensorrt_api` are those of the libraries: every name, and every parameter we give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.engines.tensorrt.binding_signatures import (
    CLASSES,
    CONSTRUCTORS,
    ENUMS,
    RTX_CLASSES,
    members_of,
    signatures_of,
)

KNOWN = json.loads((Path(__file__).parent / "tensorrt_signatures.json").read_text())
FULL = ("10.16.1.11", "11.4.0.106")


@pytest.fixture(scope="module")
def signatures():
    """By version, TensorRT-RTX's read from the installed library and TensorRT's as they were read from its bindings."""
    library = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return {**KNOWN, "rtx": signatures_of(library, rtx=True)}


def takes(overloads, ours) -> bool:
    """Whether an overload has exactly our parameters, or more behind them."""
    return any(theirs[: len(ours)] == ours for theirs in overloads)


@pytest.mark.parametrize(
    ("version", "protocol"),
    [(version, protocol) for version in (*FULL, "rtx") for protocol in CLASSES] + [("rtx", p) for p in RTX_CLASSES],
)
def test_every_member_exists_with_our_parameters(version, protocol, signatures):
    theirs = signatures[version][protocol]
    ours = members_of(protocol)
    assert set(ours) == set(theirs)
    assert ours
    for name, parameters in ours.items():
        if parameters == "property":
            assert theirs[name] == "property", f"{protocol}.{name} is {theirs[name]} in {version}"
        else:
            assert theirs[name], f"{protocol}.{name} is missing in {version}"
            assert takes(theirs[name], parameters), f"{protocol}.{name} takes {theirs[name]}, we give {parameters}"


@pytest.mark.parametrize("version", [*FULL, "rtx"])
@pytest.mark.parametrize("protocol", ENUMS)
def test_every_enumeration_has_our_members(version, protocol, signatures):
    assert set(members_of(protocol)) == set(signatures[version][protocol])


@pytest.mark.parametrize("version", [*FULL, "rtx"])
def test_the_modules_have_our_names_and_constructors(version, signatures):
    ours = members_of("Library")
    assert set(ours) == set(signatures[version]["Library"])
    for name in CONSTRUCTORS:
        assert takes(signatures[version]["constructors"][name], ours[name])


def test_a_name_that_does_not_exist_would_be_found(signatures):
    assert not takes(signatures["rtx"]["Builder"]["create_network"], ["flags", "more"])
    assert "EXPLICIT_BATCH" not in signatures["11.4.0.106"]["NetworkFlags"]


def test_the_installed_bindings_of_tensorrt_hold_every_name():
    """The names stand in the binary also where its libraries are missing and it cannot be imported."""
    try:
        spec = importlib.util.find_spec("tensorrt_bindings")
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        pytest.skip("needs the package of TensorRT's bindings (tensorrt-cu12-bindings or tensorrt-cu13-bindings)")
    binary = next(Path(spec.origin).parent.glob("tensorrt*.so")).read_bytes()
    names = [name for protocol in [*CLASSES, *ENUMS] for name in members_of(protocol)]
    missing = [name for name in [*names, *CLASSES.values()] if f"{name}\0".encode() not in binary]
    assert not missing
