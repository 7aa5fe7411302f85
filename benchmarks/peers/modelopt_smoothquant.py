"""NVIDIA modelopt INT8 with SmoothQuant, in torch; images by its own fake quantization, time by its ONNX export."""

from __future__ import annotations

import modelopt.torch.quantization as mtq
import onnxruntime as ort
import torch
import torch_model
from job import Job, latency_ms


class Named(torch.nn.Module):
    """The denoiser with positional inputs, as the exporter wants it."""

    def __init__(self, module, names):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values):
        """The output for values in the order of the names."""
        return self.module(**dict(zip(self.names, values, strict=True)), return_dict=False)[0]


def exported_latency(module, job):
    """(milliseconds, bytes, words) of the Q/DQ graph on ONNX Runtime, or why there is none."""
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
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}
        feed = {name: value for name, value in example.items() if name in names}
        return latency_ms(lambda inputs: session.run(None, inputs), feed), path.stat().st_size, "time: ONNX Runtime"
    except Exception as error:  # an export that fails is a finding, not a stop
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return None, 0, f"its ONNX export or ONNX Runtime refuses: {first}"


def main() -> None:
    """Quantize, time, draw."""
    job = Job()
    module = torch_model.load(job["model_dir"], job.threads)
    float_ms = latency_ms(torch_model.denoiser(module), job.example())

    def forward_loop(model):
        for batch in job.calibration():
            torch_model.call(model, batch)

    module = mtq.quantize(module, mtq.INT8_SMOOTHQUANT_CFG, forward_loop)
    job.calibrated()
    milliseconds, size, words = exported_latency(module, job)
    job.finish(
        torch_model.denoiser(module),
        packages=("nvidia-modelopt", "torch"),
        size_bytes=size,
        note=f"INT8_SMOOTHQUANT_CFG, images by fake quantization in torch; {words}",
        float_latency_ms=float_ms,
        latency_ms=milliseconds if milliseconds is not None else float("nan"),
    )


if __name__ == "__main__":
    main()
