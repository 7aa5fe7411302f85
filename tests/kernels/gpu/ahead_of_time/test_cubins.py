import ctypes
import hashlib
import importlib.resources
import json
import re

import pytest
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.ahead_of_time.cubins import (
    CALLS,
    MAX_DYNAMIC_SHARED,
    CubinStore,
    DeviceArray,
    Driver,
    DriverError,
    DriverMissingError,
    argument_values,
)
from dq_kernels.gpu.launch.calls import KernelCall, argument_types, key_of


def clear_call(pointer=0x7F0000001000, words=96, eps=None):
    arguments = {"workspace": DeviceArray((words,), "int64", pointer), "words": words}
    if eps is not None:
        arguments["eps_bits"] = eps
    return KernelCall(
        kernel="clear_kernel", grid=(3, 2, 1), arguments=arguments, constants={"BLOCK": 256}, warps=4, stages=1
    )


class PaperDriver:
    """Answers as libcuda does and writes down what it is asked."""

    def __init__(self, status=0):
        self.asked, self.status = [], status

    def cuGetErrorName(self, _status, text):
        text._obj.value = b"CUDA_ERROR_INVALID_IMAGE"
        return 0

    def cuModuleLoadData(self, handle, image):
        handle._obj.value = 11
        return self._note("load", bytes(image))

    def cuModuleGetFunction(self, handle, module, name):
        handle._obj.value = 22
        return self._note("get", module, name)

    def cuModuleUnload(self, module):
        return self._note("unload", module)

    def cuFuncSetAttribute(self, function, attribute, value):
        return self._note("attribute", function, attribute, value)

    def cuLaunchKernel(self, function, *rest):
        *shape, stream, pointers, extra = rest
        assert extra is None
        types = (ctypes.c_uint64, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64)
        read = [kind.from_address(address).value for kind, address in zip(types, pointers, strict=True)]
        return self._note("launch", function, shape, stream, read)

    def _note(self, *what):
        self.asked.append(what)
        return self.status


@pytest.fixture
def folder(tmp_path):
    call = clear_call()
    entry = {
        "symbol": "clear_kernel",
        "warps": 4,
        "shared_bytes": 65536,
        "arguments": [["workspace", "*i64"], ["words", "i32"]],
        "sha256": hashlib.sha256(b"code").hexdigest(),
    }
    (tmp_path / "cubins.json").write_text(json.dumps({"format": 1, "cubins": {key_of(call, 90): entry}}))
    (tmp_path / f"{key_of(call, 90)}.cubin").write_bytes(b"code")
    return tmp_path


def test_a_launch_hands_the_driver_grid_block_memory_and_arguments_with_two_null_pointers(folder):
    paper = PaperDriver()
    store = CubinStore(folder, 90, Driver(paper))
    store.launch(clear_call(), stream=5)
    store.launch(clear_call(pointer=0x7F0000002000, words=40), stream=6)
    store.close()
    assert paper.asked == [
        ("load", b"code"),
        ("get", 11, b"clear_kernel"),
        ("attribute", 22, 8, 65536),
        ("launch", 22, [3, 2, 1, 128, 1, 1, 65536], 5, [0x7F0000001000, 96, 0, 0]),
        ("launch", 22, [3, 2, 1, 128, 1, 1, 65536], 6, [0x7F0000002000, 40, 0, 0]),
        ("unload", 11),
    ]


@pytest.mark.parametrize("code", [b"codf", b"cod", None])
def test_a_cubin_that_is_not_what_was_compiled_never_reaches_the_driver(folder, code):
    path = folder / f"{key_of(clear_call(), 90)}.cubin"
    path.unlink() if code is None else path.write_bytes(code)
    paper = PaperDriver()
    reason = "cannot be read" if code is None else "is not what was written"
    with pytest.raises(KernelInputError, match=reason):
        CubinStore(folder, 90, Driver(paper)).load([clear_call()])
    assert paper.asked == []


def test_an_index_of_an_earlier_version_has_no_hash_and_loads(folder):
    index = json.loads((folder / "cubins.json").read_text())
    for entry in index["cubins"].values():
        del entry["sha256"]
    (folder / "cubins.json").write_text(json.dumps(index))
    paper = PaperDriver()
    CubinStore(folder, 90, Driver(paper)).load([clear_call()])
    assert ("load", b"code") in paper.asked


def test_a_refusal_of_the_driver_is_named(folder):
    with pytest.raises(DriverError, match=r"CUDA_ERROR_INVALID_IMAGE to cuModuleLoadData; see nvidia-smi"):
        CubinStore(folder, 90, Driver(PaperDriver(status=200))).load([clear_call()])


def test_without_a_driver_one_line_says_so(monkeypatch):
    monkeypatch.setattr("dq_kernels.gpu.ahead_of_time.cubins.LIBRARY", "libcuda-of-nowhere.so.1")
    with pytest.raises(
        DriverMissingError, match=r"^no NVIDIA driver: .*; install one, or use the CPU kernels"
    ) as found:
        Driver()
    assert "\n" not in str(found.value)


def test_what_was_not_compiled_is_refused(folder):
    store = CubinStore(folder, 80, Driver(PaperDriver()))
    with pytest.raises(KernelInputError, match=r"has no clear_kernel for sm_80 .* compile it"):
        store.launch(clear_call(), 0)


@pytest.mark.parametrize(("text", "reason"), [(None, "No such file"), ("{}", "format"), ('{"format": 7}', "format 7")])
def test_a_folder_that_is_none_is_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "cubins.json").write_text(text)
    with pytest.raises(KernelInputError, match=reason):
        CubinStore(tmp_path, 80, Driver(PaperDriver()))


def test_arguments_that_the_code_was_not_compiled_for_are_refused():
    order = [("workspace", "*i64"), ("words", "i32:16"), ("eps_bits", "i64")]
    values = argument_values(order, clear_call(eps=-(1 << 62)))
    assert [(type(v), v.value) for v in values] == [
        (ctypes.c_uint64, 0x7F0000001000),
        (ctypes.c_int32, 96),
        (ctypes.c_int64, -(1 << 62)),
        (ctypes.c_uint64, 0),
        (ctypes.c_uint64, 0),
    ]
    for call, name in (
        (clear_call(pointer=0x7F0000001008, eps=1), "workspace"),
        (clear_call(pointer=0, eps=1), "workspace"),
        (clear_call(words=97, eps=1), "words"),
        (clear_call(eps=1 << 63), "eps_bits"),
    ):
        with pytest.raises(KernelInputError, match=f"^{name} is"):
            argument_values(order, call)


def test_the_key_changes_with_all_that_the_code_depends_on():
    call = clear_call()
    keys = {key_of(call, 90), key_of(call, 80), key_of(clear_call(eps=1), 90)}
    for change in ({"constants": {"BLOCK": 128}}, {"warps": 8}, {"stages": 2}, {"kernel": "other"}):
        keys.add(key_of(KernelCall(**{**call.__dict__, **change}), 90))
    assert len(keys) == 7
    assert key_of(clear_call(pointer=16, words=33), 90) == key_of(call, 90)
    assert argument_types(call) == {"workspace": "*i64", "words": "i32"}


def test_the_declarations_are_those_of_the_driver():
    """cuda-bindings ships the driver's declarations; their arguments are counted."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    text = (importlib.resources.files("cuda.bindings") / "cydriver.pxd").read_text()
    for name, arguments in CALLS.items():
        declared = re.search(rf"cdef CUresult {name}\((.*)\) except", text)
        assert declared is not None, name
        assert len(declared[1].split(",")) == len(arguments), name
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert int(attribute) == MAX_DYNAMIC_SHARED
