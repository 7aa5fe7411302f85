"""The tracer sees shapes only; parameters are put into the graph afterwards and read where they are used."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dq_deploy.errors import ModelError
from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.graph.trace import MODULE_KEY, trace


class Net(torch.nn.Module):
    """A convolution and a linear layer too large for the tracer to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 320, 3, padding=1)
        self.big = torch.nn.Conv2d(320, 320, 3, padding=1)
        self.linear = torch.nn.Linear(320, 4096)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        x = self.big(self.conv(sample)) + timestep[:, None, None, None]
        return (self.linear(x.permute(0, 2, 3, 1)),)


EXAMPLE = {"sample": np.zeros((2, 4, 4, 4), np.float32), "timestep": np.zeros(2, np.float32)}


def lazy(module: Net, names: list[str], read: list[str]) -> dict[str, ir.TensorProtocol]:
    state = module.state_dict()

    def tensor(name: str) -> ir.TensorProtocol:
        def values() -> ir.TensorProtocol:
            read.append(name)
            return ir.tensor(state[name].numpy())

        shape = ir.Shape(tuple(state[name].shape))
        return ir.LazyTensor(values, dtype=ir.DataType.FLOAT, shape=shape, name=name)

    return {name: tensor(name) for name in names}


@pytest.fixture(scope="module")
def module() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def test_a_weight_on_meta_is_read_only_when_it_is_written(module: Net, tmp_path) -> None:
    import onnxruntime

    read: list[str] = []
    names = ["big.weight", "linear.weight"]
    weights = lazy(module, names, read)
    sample, timestep = torch.randn(3, 4, 4, 4), torch.arange(3.0)
    expected = module(sample, timestep)[0].numpy()
    frame = Net().eval().requires_grad_(False)
    frame.load_state_dict(module.state_dict())
    for name in names:
        owner = frame.get_submodule(name.removesuffix(".weight"))
        owner.weight = torch.nn.Parameter(owner.weight.to("meta"), requires_grad=False)
    model = trace(frame, EXAMPLE, weights=weights)
    assert read == []
    assert {node.metadata_props.get(MODULE_KEY) for node in model.graph} >= {"conv", "big", "linear"}
    write_onnx(model, tmp_path / "net.onnx", None)
    assert set(read) == set(names)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"sample": sample.numpy(), "timestep": timestep.numpy()})
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_tracing_leaves_the_module_as_it_was(module: Net) -> None:
    before = {name: value.data_ptr() for name, value in module.state_dict().items()}
    model = trace(module, EXAMPLE)
    assert {name: value.data_ptr() for name, value in module.state_dict().items()} == before
    value = model.graph.initializers["big.weight"].const_value
    assert value is not None
    assert np.shares_memory(value.numpy(), module.big.weight.numpy())


def test_a_module_that_cannot_be_traced_is_one_line(module: Net) -> None:
    def looks_at_values(inner: Net, inputs) -> torch.Tensor:
        return inner(**inputs)[0] if inputs["timestep"].sum().item() > 0 else inputs["sample"]

    with pytest.raises(ModelError, match="torch could not trace the denoiser") as caught:
        trace(module, EXAMPLE, call=looks_at_values)
    assert "\n" not in str(caught.value)


def test_a_graph_of_a_known_key_is_not_traced_again_and_takes_the_values_given_now(module: Net, monkeypatch) -> None:
    calls: list[str] = []
    exported = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: (calls.append("traced"), exported(*a, **k))[1])
    other = Net().eval().requires_grad_(False)
    graphs = [ir.to_proto(trace(m, EXAMPLE, key=("net", 1))) for m in (module, other, module)]
    assert calls == ["traced"]
    texts = [graph.SerializeToString(deterministic=True) for graph in graphs]
    assert texts[0] == texts[2]
    assert texts[0] != texts[1]
    assert other.conv.weight.numpy().tobytes() in texts[1]
    trace(module, EXAMPLE, key=("net", 2))
    trace(module, EXAMPLE)
    assert calls == ["traced"] * 3


class Turning(torch.nn.Module):
    """Holds what it adds as plain attributes, as Qwen-Image its rotations: neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = torch.arange(4.0)
        self.listed = [torch.full((4,), 10.0), torch.full((4,), 100.0)]

    def forward(self, sample: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        return (sample + self.alone + self.listed[0] * self.listed[1],)


def test_tensors_that_are_plain_attributes_are_constants(tmp_path) -> None:
    import onnxruntime

    write_onnx(trace(Turning(), {"sample": np.zeros((2, 4), np.float32)}), tmp_path / "net.onnx", None)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (output,) = session.run(None, {"sample": np.ones((3, 4), np.float32)})
    np.testing.assert_array_equal(output, np.tile(1001 + np.arange(4, dtype=np.float32), (3, 1)))
