"""Each fault in an engine is found: exit code 3, and the layer is named."""

from __future__ import annotations

import json

import pytest

from tests.cli.running import command
from tests.verify import sabotage

LAYER = "down_blocks.0.resnets.0.conv2"
OTHER = "up_blocks.0.resnets.0.conv2"


@pytest.fixture
def refused(toy_engine, tmp_path):
    """Damage an engine, verify it with --exact, and return what was said and written."""

    def run(bits, damage, *arguments):
        ckpt, engine = toy_engine(*bits)
        damaged = sabotage.Engine(engine)
        damage(damaged)
        path = damaged.save(tmp_path / "damaged.onnx")
        report = tmp_path / "verify.json"
        options = arguments or ("--exact",)
        done = command("verify", "--ckpt", ckpt, "--engine", path, "--json", report, "--threads", 1, *options)
        assert done.code == 3, done.err
        return done.err.splitlines()[-1], json.loads(report.read_text())

    return run


def status_of(report, name):
    return next(layer["status"] for layer in report["layers"] if layer["name"] == name)


def test_one_flipped_weight_code(refused):
    said, report = refused((4, 8), lambda e: sabotage.flip_weight_code(e, LAYER))
    assert LAYER in said
    assert "accumulator at" in said
    assert "step 0" in said
    assert report["max_code_difference"] == 0
    assert report["max_accumulator_difference"] > 0
    assert [x["name"] for x in report["layers"] if x["status"] == "differs"] == [LAYER]


def test_a_zero_point_off_by_one_at_one_step(refused):
    said, report = refused((4, 8), lambda e: sabotage.shift_zero_point(e, LAYER, 4))
    assert LAYER in said
    assert "step 4 " in said
    assert "code at" in said
    assert report["max_code_difference"] == 1


def test_a_bound_off_by_one_that_no_activation_reaches(refused):
    said, report = refused((4, 4), lambda e: sabotage.shift_upper_bound(e, LAYER, 3))
    assert LAYER in said
    assert "step 3 " in said
    assert report["max_code_difference"] == 1


@pytest.mark.parametrize("damage", [sabotage.pad_with_another_code, sabotage.pad_with_neighbour])
def test_wrong_padding(refused, damage):
    said, report = refused((4, 8), lambda e: damage(e, LAYER))
    assert LAYER in said
    assert "accumulator at" in said
    assert report["max_code_difference"] == 0


def test_a_bucket_edge_moved_by_one_float(refused):
    said, report = refused((4, 8), lambda e: sabotage.move_edge(e, 2))
    assert "step 3" in said
    assert "conv_in" in said
    assert "bucket 2 in the engine, expected 3" in said
    assert report["max_code_difference"] == 0


def test_two_input_tables_swapped(refused):
    said, report = refused((4, 8), lambda e: sabotage.swap_input_tables(e, LAYER, OTHER))
    assert LAYER in said
    assert {x["name"] for x in report["layers"] if x["status"] == "differs"} == {LAYER, OTHER}


def test_two_output_tables_swapped(refused):
    said, report = refused((4, 8), lambda e: sabotage.swap_output_tables(e, LAYER, OTHER))
    assert LAYER in said
    assert "output at" in said
    assert report["max_accumulator_difference"] == 0
    assert {x["name"] for x in report["layers"] if x["status"] == "differs"} == {LAYER, OTHER}


def test_a_weight_form_that_saturates_on_other_processors(refused):
    said, report = refused((8, 8), lambda e: sabotage.store_weights_signed(e, LAYER))
    assert LAYER in said
    assert "saturates on CPUs that add u8 x s8 pairs in int16" in said
    assert status_of(report, LAYER) in ("unsafe", "differs")


def test_a_layer_that_fell_back_to_float(refused):
    said, report = refused((4, 8), lambda e: sabotage.fall_back_to_float(e, LAYER))
    assert LAYER in said
    assert "float32 x float32" in said
    assert status_of(report, LAYER) == "float"
    assert LAYER in [row["name"] for row in report["float_layers"]]


def test_the_integer_share_falls_with_a_float_layer(refused):
    said, report = refused((4, 8), lambda e: sabotage.fall_back_to_float(e, OTHER), "--require-integer", "0.95")
    assert report["integer_mac_share"] < 0.95
    assert "required 0.95" in said
    assert OTHER in said


def test_a_float_operation_between_layers(refused):
    def damage(engine):
        norm = next(n for n in engine.graph.node if n.op_type == "InstanceNormalization")
        norm.attribute[0].f = 0.5

    said, report = refused((4, 8), damage)
    assert "a float operation between them is wrong" in said
    assert "conv1" in said
    assert report["max_code_difference"] == report["max_accumulator_difference"] == 0


def test_a_tensor_that_is_gone_leaves_the_layer_unproven(refused):
    def damage(engine):
        for node in engine.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == f"dq/{LAYER}/canonical":
                        names[i] = "another_name"

    said, report = refused((4, 8), damage)
    assert LAYER in said
    assert "is not in the engine" in said
    assert status_of(report, LAYER) == "unproven"
    assert report["layers_compared"] == report["layers_total"] - 1


def test_without_exact_what_the_record_does_not_make_is_refused(toy_engine, tmp_path):
    ckpt, engine = toy_engine(4, 8)
    damaged = sabotage.Engine(engine)
    sabotage.flip_weight_code(damaged, LAYER)
    path = damaged.save(tmp_path / "damaged.onnx")
    done = command("verify", "--ckpt", ckpt, "--engine", path, "--threads", 1)
    assert done.code == 3
    assert "differs" in done.out
    assert LAYER in done.out
    assert f"engine is not what its record makes: constant dq/{LAYER}/weight at (" in done.err
    assert " is 3, expected 4" in done.err
    assert len(done.err.splitlines()[-1]) <= 300
