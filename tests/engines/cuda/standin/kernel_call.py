"""One call of a real kernel on memory at an address."""

from __future__ import annotations

from dq_kernels.gpu.ahead_of_time.cubins import DeviceArray
from dq_kernels.gpu.launch.calls import KernelCall
from dq_kernels.gpu.launch.float_calls import CodeOutput, quantize_calls
from dq_kernels.gpu.launch.weights import Quantizer
from dq_kernels.gpu.tune.configurations import BlockConfiguration


def call_at(pointer: int) -> KernelCall:
    """Codes of one sample of 16 rows and 16 channels; every array lies at the same address."""

    def array(dtype: str, *shape: int) -> DeviceArray:
        return DeviceArray(shape, dtype, pointer)

    quantizer = Quantizer(
        pre=array("float32", 16),
        inverse_scale=array("float32", 1),
        zero_point=array("int32", 1),
        q_min=0,
        q_max=255,
    )
    output = CodeOutput(quantizer=quantizer, codes=array("int8", 1, 16, 16))
    configuration = BlockConfiguration(elements=256, warps=4)
    (call,) = quantize_calls(array("float16", 1, 16, 16), array("int32", 1), output, configuration=configuration)
    return call
