"""OpenVINO as its documentation runs it: as it comes, held to float32, and with NNCF's own int8 of the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from turns import Opened, Settings, calibration, main


def opened(settings: Settings) -> Opened:
    """The model with its shapes fixed, compiled for the CPU; no other option than threads, and float32 if asked."""
    folder = Path(settings.folder)
    core = ov.Core()
    model = core.read_model(folder / ("nncf.xml" if settings.engine == "nncf int8" else "float.xml"))
    example = settings.example()
    model.reshape({name: list(value.shape) for name, value in example.items()})
    options = {"INFERENCE_NUM_THREADS": settings.threads, "PERFORMANCE_HINT": "LATENCY"}
    if settings.engine == "openvino float32":
        options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    named = [(name, np.dtype(compiled.input(name).element_type.to_dtype())) for name in example]

    def run(inputs):
        given = {name: inputs[name].astype(kind, copy=False) for name, kind in named}
        return request.infer(given, share_inputs=True, share_outputs=True)[0]

    return Opened(run, compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def prepare(folder: Path, engine: str) -> None:
    """Write `nncf.xml`, by nncf.quantize as OpenVINO's own examples quantize denoisers: as a transformer.

    That is 8 dB better on the demo model than without. The time embedding is left out: with the sine of the timestep in
    8 bits pictures are lost (8 dB).
    """
    if engine != "nncf int8" or (folder / "nncf.bin").is_file():
        return
    import nncf

    model = ov.Core().read_model(folder / "float.xml")
    batches = calibration(folder, 1)
    model.reshape({name: [-1, *value.shape[1:]] for name, value in batches[0].items()})
    left = nncf.IgnoredScope(patterns=[".*time_proj.*", ".*time_embedding.*", ".*timestep_embedder.*"], validate=False)
    more = {"model_type": nncf.ModelType.TRANSFORMER, "ignored_scope": left}
    quantized = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), **more)
    ov.save_model(quantized, folder / "nncf.xml")


if __name__ == "__main__":
    main(opened, prepare)
