import pytest
import torch

from dq_deploy.cli.frame import run
from dq_deploy.cli.tune import tune

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(tune, arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1
    return lines[0]


@NO_GPU
def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys):
    line = failure(capsys, "--model", "sd15", "--out", str(tmp_path / "table.json"))
    assert line.startswith("error: dq-tune needs an NVIDIA GPU and torch with CUDA, found none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--model", "sd3"), "--model is sd3, expected one of cifar, sd15, sdxl"),
        (("--model", "sd15", "--dtype", "int8"), "--dtype is int8, expected one of float16"),
        (("--model", "sd15", "--op", "relu"), "--op is relu, expected one of quantize"),
        (("--model", "sd15", "--jobs", "0"), "--jobs is 0, expected at least 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, options, expected):
    assert expected in failure(capsys, *options, "--out", str(tmp_path / "table.json"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_on_a_gpu_it_writes_a_table(tmp_path):
    from dq_kernels.gpu.tune.configurations import load_table

    with pytest.raises(SystemExit) as stopped:
        run(tune, ("--model", "cifar", "--op", "quantize", "--out", str(tmp_path / "table.json")))
    assert stopped.value.code == 0
    assert load_table(tmp_path / "table.json")
