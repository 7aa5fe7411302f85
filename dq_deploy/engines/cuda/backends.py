"""The libraries through which a GPU can be opened; each is imported when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.engines.cuda.interface import CudaBackend

BACKENDS = ("cuda-core", "pycuda")


def open_cuda(backend: str = "cuda-core", *, device: int = 0) -> CudaBackend:
    """The GPU through one of the libraries.

    Args:
        backend: `cuda-core` or `pycuda`.
        device: CUDA's number of the GPU.

    Raises:
        MissingDependencyError: the library, the NVIDIA driver or a GPU is missing, or the driver is too old.
        OptionError: no such backend or device.
    """
    if device < 0:
        raise OptionError(f"device is {device}, expected 0 or more")
    if backend == "cuda-core":
        from dq_deploy.engines.cuda.cuda_core import CudaCoreBackend

        return CudaCoreBackend(device)
    if backend == "pycuda":
        from dq_deploy.engines.cuda.pycuda import PycudaBackend

        return PycudaBackend(device)
    raise OptionError(f"cuda backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
