"""An ONNX file as OpenVINO's own file: what Optimum loads for OpenVINO."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.engines.base import reason_of
from dq_deploy.errors import MissingDependencyError, ModelError, raise_if_out_of_memory

IR_FILE = "openvino_model.xml"
"""Name of the graph in each component's folder; its weights lie beside it, in `openvino_model.bin`."""


def check_openvino() -> None:
    """Refuse early where OpenVINO is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"openvino cannot be imported ({error}); install it: pip install 'dq-deploy[openvino]'"
        ) from error


def write_ir(onnx_file: Path, folder: Path) -> None:
    """Convert an ONNX file as OpenVINO reads it; no weight changes its type.

    Args:
        onnx_file: with its data file beside it.
        folder: gets `openvino_model.xml` and `openvino_model.bin`.

    Raises:
        ModelError: OpenVINO cannot read it.
    """
    import openvino

    try:
        model = openvino.Core().read_model(str(onnx_file))
        openvino.save_model(model, str(folder / IR_FILE), compress_to_fp16=False)
    except Exception as error:  # openvino raises plain RuntimeError
        raise_if_out_of_memory(error)
        raise ModelError(
            f"OpenVINO cannot convert the {folder.name}: {reason_of(error)}; please report this model"
        ) from error
