"""NVIDIA modelopt INT8 with SmoothQuant, in torch; images by its own fake quantization, time by its ONNX export."""

from __future__ import annotations

import copy

import modelopt.torch.quantization as mtq
import onnxruntime as ort
import torch
import torch_model
from job import Job


class Named(torch.nn.Module):
    """The denoiser with positional inputs, as the exporter wants it."""

    def __init__(self, module, names):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values):
        """The output for values in the order of the names."""
        return self.module(**dict(zip(self.names, values, strict=True)), return_dict=False)[0]


def session(path, threads):
    """A callable for the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    found = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {i.name for i in found.get_inputs()}
    return lambda inputs: found.run(None, {name: value for name, value in inputs.items() if name in names})[0]


def exported(module, job):
    """((float, quantized) sessions, bytes, words) of the Q/DQ graph on ONNX Runtime, or why there is none."""
    example = job.example()
    path = job.work / "qdq.onnx"
    try:
        values = tuple(torch.from_numpy(value) for value in example.values())
        with torch.inference_mode():
            torch.onnx.export(
                Named(module, list(example)),
                values,
                str(path),
                input_names=list(example),
                dynamo=False,
                opset_version=17,
            )
        pair = session(job["float_onnx"], job.threads), session(path, job.threads)
        return pair, path.stat().st_size, "its ONNX export, which keeps float weights, gives size and time"
    except Exception as error:  # an export that fails is a finding, not a stop
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return None, 0, f"its ONNX export or ONNX Runtime refuses: {first}"


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    module = torch_model.load(job["model_dir"], job.threads)
    config = copy.deepcopy(mtq.INT8_SMOOTHQUANT_CFG)
    config["quant_cfg"].append({"quantizer_name": "*time_embedding*", "enable": False})

    def forward_loop(model):
        for batch in job.calibration():
            torch_model.call(model, batch)

    job.begin()
    module = mtq.quantize(module, config, forward_loop)
    job.calibrated()
    quantized = sum(
        getattr(getattr(m, "input_quantizer", None), "is_enabled", False) and m.weight_quantizer.is_enabled
        for m in module.modules()
    )
    pair, size, words = exported(module, job)
    job.finish(
        torch_model.denoiser(module),
        timed=pair,
        layers=quantized,
        packages=("nvidia-modelopt", "torch"),
        size_bytes=size,
        note=f"INT8_SMOOTHQUANT_CFG without the time embedding, images by fake quantization in torch; {words}",
    )


if __name__ == "__main__":
    main()
