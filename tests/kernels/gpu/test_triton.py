"""The tuner from end to end, its kernels interpreted and its clock of paper."""

import json

import pytest
import torch
from dq_kernels.gpu.tune.configurations import configuration_from, load_table
from dq_kernels.int_conv2d.cases import TEST_CASES as CONVS
from dq_kernels.int_linear.cases import TEST_CASES as LINEARS
from dq_kernels.quantize.cases import TEST_CASES as QUANTIZES

from tests.kernels.gpu import bridge

assert bridge
CPU = torch.device("cpu")


class PaperClock:
    """Each configuration takes less time than the one before it."""

    def __init__(self):
        self.milliseconds = 1.0

    def __call__(self, work):
        work()
        self.milliseconds /= 2
        return self.milliseconds


def configurations():
    from dq_kernels.gpu.tune.configurations import ProductConfiguration

    sizes = {"block_m": 64, "block_n": 64, "block_k": 64, "warps": 4}
    return [ProductConfiguration(**sizes, stages=stages) for stages in (2, 3)]


@pytest.mark.parametrize("op", ["int_linear", "int_conv2d"])
def test_the_fastest_right_configuration_becomes_a_rule(op, tmp_path):
    from dq_kernels.gpu.tune.configurations import choose, load_table
    from dq_kernels.gpu.tune.tuning import fastest, problem_of, write_table

    case = CONVS[0] if op == "int_conv2d" else LINEARS[3]
    problem = problem_of(op, case, 8, torch.float16, CPU)
    rule = fastest(problem, 90, PaperClock(), configurations())
    assert rule["use"]["stages"] == 3
    assert (rule["tried"], rule["wrong"], rule["failed"]) == (3, 0, 0)
    assert rule["milliseconds"] < rule["milliseconds_default"]
    write_table(tmp_path / "table.json", [rule], "paper")
    assert json.loads((tmp_path / "table.json").read_text())["source"] == "paper"
    table = load_table(tmp_path / "table.json")
    assert choose(op, 90, problem.facts, table) == configurations()[1]
    assert choose(op, 80, problem.facts, table) == choose(op, 80, problem.facts)
    assert choose(op, 90, {**problem.facts, "m": problem.facts["m"] + 1}, table).stages != 2


SMALL = {"int_linear": LINEARS[1], "int_conv2d": next(case for case in CONVS if case.name == "down")}
# both products have the same rules: one goes through them in 8 bits, the other in 4
RULES = [(rule, {"int_linear": 8, "int_conv2d": 4}.get(rule["op"], 0)) for rule in load_table()]


@pytest.mark.parametrize(("rule", "bits"), RULES, ids=lambda value: value["op"] if isinstance(value, dict) else value)
def test_every_rule_of_the_table_gives_the_bits_of_the_reference(rule, bits):
    import importlib

    from dq_kernels.gpu.tune.tuning import problem_of

    op = rule["op"]
    case = SMALL.get(op) or importlib.import_module(f"dq_kernels.{op}.cases").TEST_CASES[3]
    problem = problem_of(op, case, bits, torch.float16, CPU)
    problem.check(configuration_from(op, rule["use"]))
    assert problem.right()


def test_a_wrong_configuration_is_out_and_a_wrong_default_stops(monkeypatch):
    from dataclasses import replace

    from dq_kernels.cpu.library import KernelInputError
    from dq_kernels.gpu.tune.tuning import fastest, problem_of

    problem = problem_of("int_linear", LINEARS[0], 4, torch.float32, CPU)
    answers = iter([True, False, True])  # of the default, of the fastest, of the next
    rule = fastest(replace(problem, right=lambda: next(answers)), 90, PaperClock(), configurations())
    assert (rule["wrong"], rule["use"]["stages"]) == (1, 2)
    with pytest.raises(KernelInputError, match="gives a wrong result; do not use"):
        fastest(replace(problem, right=lambda: False), 90, PaperClock(), configurations())


def test_codes_are_compared_with_the_reference():
    from dq_kernels.gpu.tune.configurations import BlockConfiguration
    from dq_kernels.gpu.tune.tuning import problem_of

    problem = problem_of("quantize", QUANTIZES[3], 0, torch.float16, CPU)
    assert not problem.right()
    problem.check(BlockConfiguration(elements=1024, warps=4))
    assert problem.right()
