"""Measures configurations on the GPU at hand and writes a table of them; `dq-tune` is its command.

The fastest configuration that gives every accumulator or code right becomes the rule, which says how many faster ones
did not. Products are compared with an integer product in float64 (exact below 2^53), the float ops with `reference.py`.
Times are those of `dq_kernels.gpu.tune.clock`: runs in graphs, each behind a flush of the L2 cache. Before, kernels are
compiled in processes by `dq_kernels.gpu.tune.compiling`.

Never run on a GPU: on a CPU its tests interpret the kernels and give it a clock of their own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.ahead_of_time.shapes import FLOAT_OPS, PRODUCT_OPS, float_facts, product_facts
from dq_kernels.gpu.launch import launching as launch
from dq_kernels.gpu.launch.float_calls import CodeOutput
from dq_kernels.gpu.launch.product_calls import Epilogue, Window
from dq_kernels.gpu.launch.weights import make_quantizer, make_weights
from dq_kernels.gpu.tune.candidates import candidates
from dq_kernels.gpu.tune.clock import Clock
from dq_kernels.gpu.tune.compiling import Compiler
from dq_kernels.gpu.tune.configurations import FORMAT, PRODUCTS, Configuration, choose
from dq_kernels.quantize.reference import signed_codes

Work = Callable[[Configuration], None]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One op at one shape, ready to run.

    Attributes:
        op: its name.
        facts: what the rule is bound to.
        run: launches with a configuration.
        check: launches with a configuration, so that what it gives can be compared.
        right: whether what was checked last gives what the reference gives.
        pitch: bytes of a weight row; 0 without weights.
    """

    op: str
    facts: Mapping[str, int]
    run: Work
    check: Work
    right: Callable[[], bool]
    pitch: int = 0


def shapes_of_model(model: str, op: str | None = None) -> list[tuple[str, Any, int]]:
    """(op, case, bits of the weights) of a model's shapes, those of equal facts once; bits are 0 without weights."""
    found: dict[tuple[Any, ...], tuple[str, Any, int]] = {}
    for name in PRODUCT_OPS + FLOAT_OPS:
        for case in importlib.import_module(f"dq_kernels.{name}.cases").SHAPE_CASES:
            if case.model != model or op not in (None, name):
                continue
            for bits in (8, 4) if name in PRODUCTS else (0,):
                facts = product_facts(name, case, bits) if bits else float_facts(name, case)
                found.setdefault((name, *facts.values()), (name, case, bits))
    return list(found.values())


def problem_of(op: str, case: Any, bits: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """A shape, ready to run."""
    return product_problem(op, case, bits, dtype, device) if bits else float_problem(op, case, dtype, device)


def product_problem(op: str, case: Any, bits: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """A product with a bias, its accumulators compared."""
    inputs = case.inputs()
    if bits == 8 and case.weight_bits < 8:
        inputs["weights"] = np.random.default_rng(1).integers(-128, 128, inputs["weights"].shape).astype(np.int8)
    channels = inputs["codes"].shape[-1]
    codes = torch.from_numpy(signed_codes(inputs["codes"]).reshape(case.batch, -1, channels)).to(device)
    weights = launch.to_device(make_weights(inputs["weights"], inputs["weight_scale"], bits=bits), device)
    names = ("scale", "zero_point", "q_min", "q_max")
    made = make_quantizer(**{name: inputs[name] for name in names}, pads_pitch=channels if op == "int_conv2d" else 0)
    quantizer, step = launch.to_device(made, device), torch.from_numpy(inputs["step"]).to(device)
    facts = product_facts(op, case, bits)
    shape = (case.batch, facts["m"] // case.batch, case.out_channels)
    y = torch.empty(shape, dtype=dtype, device=device)
    bias = None if inputs["bias"] is None else torch.from_numpy(inputs["bias"]).to(device)
    found = torch.empty(shape, dtype=torch.int32, device=device)
    expected = exact_product(op, case, inputs, device).view(shape)
    window = None
    if op == "int_conv2d":
        size = (case.height, case.width)
        window = Window(size=size, **{n: inputs[n] for n in ("out_size", "stride", "padding", "dilation")})

    def start(configuration: Configuration, accumulators: torch.Tensor | None) -> None:
        epilogue = Epilogue(y=y, accumulators=accumulators, bias=bias)
        given: dict[str, Any] = {"configuration": configuration}
        if window is None:
            launch.int_linear(codes, weights, quantizer, step, epilogue, **given)
        else:
            launch.int_conv2d(codes, weights, quantizer, step, epilogue, window, **given)

    def check(configuration: Configuration) -> None:
        found.fill_(-1)
        start(configuration, found)

    # accumulators are written for the comparison alone
    return Problem(
        op=op,
        facts=facts,
        run=lambda configuration: start(configuration, None),
        check=check,
        right=lambda: bool(torch.equal(found, expected)),
        pitch=weights.pitch,
    )


def exact_product(op: str, case: Any, inputs: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """Canonical accumulators by float64 products of integers, a tap of the window at a time."""
    step = np.minimum(inputs["step"], len(inputs["zero_point"]) - 1)
    zero = torch.from_numpy(inputs["zero_point"][step].astype(np.float64) - inputs["q_min"]).to(device)
    codes = torch.from_numpy(inputs["codes"]).to(device).double()
    centred = codes - zero.view(-1, *[1] * (codes.ndim - 1))
    weights = torch.from_numpy(inputs["weights"]).to(device).double()
    if op == "int_linear":
        return (centred @ weights.T).to(torch.int32)
    (out_h, out_w), (stride_h, stride_w) = inputs["out_size"], inputs["stride"]
    (top, left), (dilation_h, dilation_w) = inputs["padding"], inputs["dilation"]
    reach_h = (out_h - 1) * stride_h + dilation_h * (weights.shape[1] - 1) + 1
    reach_w = (out_w - 1) * stride_w + dilation_w * (weights.shape[2] - 1) + 1
    padded = centred.new_zeros(
        (len(codes), max(reach_h, case.height + top), max(reach_w, case.width + left), codes.shape[3])
    )
    padded[:, top : top + case.height, left : left + case.width] = centred
    total = centred.new_zeros((len(codes), out_h, out_w, len(weights)))
    for i in range(weights.shape[1]):
        for j in range(weights.shape[2]):
            down, across = i * dilation_h, j * dilation_w
            rows = slice(down, down + (out_h - 1) * stride_h + 1, stride_h)
            columns = slice(across, across + (out_w - 1) * stride_w + 1, stride_w)
            total += padded[:, rows, columns] @ weights[:, i, j].T
    return total.to(torch.int32)


def float_problem(op: str, case: Any, dtype: torch.dtype, device: torch.device) -> Problem:
    """A float op that writes codes alone, compared with the reference's."""
    inputs = case.inputs()
    x = torch.from_numpy(inputs["x"]).to(dtype)
    read = {**inputs, "x": x.float().numpy()}
    module = importlib.import_module(f"dq_kernels.{op}.reference")
    answer = getattr(module, op)(**read)
    expected = [answer[0]] if op == "quantize" else [answer[1]] if op == "geglu_quantize" else answer[1]
    references = inputs.get("outputs") or [inputs["quantizer" if op == "quantize" else "output"]]
    outputs = []
    for reference in references:
        names = ("pre", "inverse_scale", "zero_point", "q_min", "q_max", "first")
        quantizer = make_quantizer(**{name: getattr(reference, name) for name in names})
        codes = torch.empty((*x.shape[:2], reference.channels), dtype=torch.int8, device=device)
        outputs.append(CodeOutput(quantizer=launch.to_device(quantizer, device), codes=codes))
    x, step = x.to(device), torch.from_numpy(inputs["step"]).to(device)
    norm: dict[str, Any] = {name: inputs[name] for name in ("groups", "eps", "silu") if name in inputs}
    for name, fill in (("gamma", 1.0), ("beta", 0.0)):
        if name in inputs:
            array = np.full(x.shape[2], fill, np.float32) if inputs[name] is None else inputs[name]
            norm[name] = torch.from_numpy(array).to(device)

    def run(configuration: Configuration) -> None:
        given: Any = configuration
        if op == "quantize":
            launch.quantize(x, step, outputs[0].quantizer, codes=outputs[0].codes, configuration=given)
        elif op == "geglu_quantize":
            launch.geglu_quantize(x, step, outputs[0], channels=case.channels, configuration=given)
        else:
            getattr(launch, op)(x, step, outputs, **norm, configuration=given)

    def right() -> bool:
        pairs = zip(outputs, expected, strict=True)
        return all(np.array_equal(output.codes.cpu().numpy(), signed_codes(codes)) for output, codes in pairs)

    def check(configuration: Configuration) -> None:
        for output in outputs:
            output.codes.zero_()
        run(configuration)

    return Problem(op=op, facts=float_facts(op, case), run=run, check=check, right=right)


def fastest(
    problem: Problem,
    architecture: int,
    clock: Clock,
    tried: list[Configuration] | None = None,
    compiler: Compiler | None = None,
) -> dict[str, Any]:
    """Rule of the fastest right configuration, with its time and the default's.

    Args:
        problem: what is run.
        architecture: of `ARCHITECTURES`.
        clock: milliseconds of one run.
        tried: configurations beside the default; those of `candidates` where it is None.
        compiler: makes the kernels before; without it they are compiled as they are launched.

    Raises:
        KernelInputError: the default configuration does not run or gives a wrong result.
    """
    default = choose(problem.op, architecture, problem.facts)
    bits = problem.facts.get("bits", 8)
    if tried is None:
        tried = candidates(problem.op, architecture, bits, problem.facts or None, problem.pitch)
    every = list(dict.fromkeys([default, *tried]))
    reasons = {} if compiler is None else compiler.reasons(problem.run, every)
    usable = [one for one in every if not reasons.get(one)]
    if default not in usable:
        raise KernelInputError(f"{problem.op} {dict(problem.facts)} does not compile: {reasons[default]}")
    times: dict[Configuration, float] = {}
    with contextlib.nullcontext() if compiler is None else compiler.kernels(problem.run, usable):
        for one in usable:
            try:
                times[one] = clock(functools.partial(problem.run, one))
            except KernelInputError:
                raise
            except Exception as error:  # a refused launch: too much shared memory, too few registers
                if one == default:
                    raise KernelInputError(f"{problem.op} {dict(problem.facts)} does not run: {error}") from error
    if not is_right(problem, default, compiler):
        raise KernelInputError(f"{problem.op} {dict(problem.facts)} gives a wrong result; do not use this GPU")
    best, wrong = default, 0
    for one in sorted(times, key=lambda one: times[one]):
        if one == default or is_right(problem, one, compiler):
            best = one
            break
        wrong += 1
    return {
        "op": problem.op,
        "architectures": [architecture],
        **{name: [value, value] for name, value in problem.facts.items()},
        "use": dict(best.__dict__),
        "milliseconds": times[best],
        "milliseconds_default": times[default],
        "tried": len(times),
        "wrong": wrong,
        "failed": len(every) - len(times),
    }


def is_right(problem: Problem, configuration: Configuration, compiler: Compiler | None) -> bool:
    """Whether a configuration gives what the reference gives; one whose check does not compile does not."""
    if compiler is not None and compiler.reasons(problem.check, [configuration])[configuration]:
        return False
    with contextlib.nullcontext() if compiler is None else compiler.kernels(problem.check, [configuration]):
        problem.check(configuration)
        return problem.right()


def write_table(path: Path, rules: list[dict[str, Any]], source: str) -> None:
    """Write a table that `load_table` reads, by a temporary file."""
    lines = ",\n    ".join(json.dumps(rule) for rule in rules)
    text = f'{{\n  "format": {FORMAT},\n  "source": {json.dumps(source)},\n  "rules": [\n    {lines}\n  ]\n}}\n'
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
