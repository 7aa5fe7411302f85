"""Makes library engines believe that this CPU has AVX2 but neither AVX-512 nor VNNI, to measure that rung honestly.

ONNX Runtime has no switch for the instructions it uses. So its package is copied to a folder, each `cpuid` instruction
in the copy's machine code becomes an illegal one, and a signal handler that is loaded before everything else answers it
with the bits of AVX-512, AMX and AVX-VNNI off. OpenVINO gets the same, and oneDNN's own switch besides. torch is held
to AVX2 by its switches alone. Likewise a CPU with AVX512-VNNI, but neither bfloat16 nor AMX. Nothing installed is
changed, no other process sees any of it.

    python -m benchmarks.machine.avx2 --folder avx2 -- python my_script.py

runs a command on such a machine. Linux on x86-64 only; needs objdump (binutils) and a C++ compiler.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent
PACKAGES = ("onnxruntime", "openvino")
CPUID, ILLEGAL = b"\x0f\xa2", b"\x0f\x0b"
SWITCHES = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD",
}
"""What torch, oneDNN and the C library listen to."""
UNUSED = ("*gpu_plugin*", "*npu_plugin*", "__pycache__")


class MachineError(RuntimeError):
    """A tool is missing or a package's machine code is not as expected; the message says which."""


def file_offset(content: bytes, address: int) -> int:
    """Place in an ELF64 file of a virtual address.

    Raises:
        MachineError: no loaded segment of the file holds it.
    """
    start, size, count = (
        struct.unpack_from("<Q", content, 32)[0],
        *struct.unpack_from("<HH", content, 54),
    )
    for i in range(count):
        kind, _, offset, virtual, _, length = struct.unpack_from("<IIQQQQ", content, start + i * size)
        if kind == 1 and virtual <= address < virtual + length:
            return address - virtual + offset
    raise MachineError(f"address {address:#x} lies in no loaded segment, expected one that objdump found there")


def cpuid_addresses(library: Path) -> list[int]:
    """Virtual addresses of the `cpuid` instructions of a shared library, by disassembling all of it.

    Raises:
        MachineError: objdump is missing or fails.
    """
    command = ["objdump", "-d", "--no-show-raw-insn", "-M", "intel", str(library)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            found = [int(line.split(":")[0], 16) for line in process.stdout if line.rstrip().endswith("\tcpuid")]
    except OSError as error:
        raise MachineError(f"objdump cannot be started ({error.strerror}), install binutils") from error
    if process.returncode:
        raise MachineError(f"objdump ended with code {process.returncode} on {library.name}, expected a shared library")
    return found


def patch(library: Path) -> int:
    """Replace every `cpuid` of a copied library; how many there were.

    Raises:
        MachineError: a byte is not as the disassembly says.
    """
    addresses = cpuid_addresses(library)
    content = bytearray(library.read_bytes())
    for address in addresses:
        at = file_offset(content, address)
        if content[at : at + 2] != CPUID:
            raise MachineError(f"{library.name} has no cpuid at {address:#x}, expected what objdump found")
        content[at : at + 2] = ILLEGAL
    if addresses:
        library.write_bytes(content)
    return len(addresses)


def copy_package(name: str, site: Path) -> int:
    """Copy an installed package and patch its libraries; instructions replaced, 0 where it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return 0
    target = site / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(Path(spec.origin).parent, target, ignore=shutil.ignore_patterns(*UNUSED))
    libraries = [path for path in sorted(target.rglob("*")) if re.search(r"\.so(\.\d+)*$", path.name)]
    return sum(patch(path) for path in libraries if not path.is_symlink())


def prepare(folder: Path, *, avx_vnni: bool = False, avx512_vnni: bool = False) -> dict[str, str]:
    """Environment variables of a process on the machine without AVX-512 and VNNI; half a minute the first time.

    Args:
        folder: for the copies (250 MB), taken as they are where they fit the installed versions.
        avx_vnni: the 256-bit dot products stay.
        avx512_vnni: AVX-512 stays, without bfloat16, FP16 and AMX.

    Raises:
        MachineError: as `patch`.
        dq_kernels.cpu.build.BuildError: no C++ compiler.
    """
    from dq_kernels.cpu.build import build

    site, handler, note = folder.resolve() / "site", folder.resolve() / "avx2_machine.so", folder / "made_of.json"
    wanted = {name: metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name) is not None}
    made = json.loads(note.read_text()) if note.is_file() else {}
    build(handler, files=[ROOT / "avx2.cpp"])
    if made.get("versions") != wanted:
        site.mkdir(parents=True, exist_ok=True)
        replaced = {name: copy_package(name, site) for name in wanted}
        note.write_text(json.dumps({"versions": wanted, "cpuid_instructions": replaced}))
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    if avx512_vnni:
        kept = {"DQ_KEEP_AVX512_VNNI": "1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
        return {**kept, "PYTHONPATH": path, "LD_PRELOAD": str(handler)}
    kept = {"DQ_KEEP_AVX_VNNI": "1", "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"} if avx_vnni else {}
    return {**SWITCHES, **kept, "PYTHONPATH": path, "LD_PRELOAD": str(handler)}


def main() -> int:
    """Run the command behind -- on such a machine; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("avx2-machine"), help="for the copies")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = [word for i, word in enumerate(arguments.command) if i or word != "--"]
    environment = {**os.environ, **prepare(arguments.folder)}
    if not command:
        for name in (*SWITCHES, "PYTHONPATH", "LD_PRELOAD"):
            print(f"{name}={environment[name]}")
        return 0
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
