"""What compiled code is made of, read with the disassembler that triton ships: no GPU is needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PRODUCTS = ("IMMA", "IGMMA", "UTCIMMA")
"""Integer matrix instructions: of a warp (sm_80 to sm_120), of a warp group (sm_90a), of Blackwell's tensor memory."""
FLOAT_PRODUCTS = ("HMMA", "HGMMA", "QGMMA", "DMMA", "UTCHMMA", "UTCQMMA", "FFMA", "HFMA2")
"""What integer products and unfused floats must not have (but see `is_fused`)."""
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([.\w]*)(.*?);")
_LABEL = re.compile(r"^(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True)
class Code:
    """Instructions of one kernel.

    Attributes:
        counts: instructions by their name without what stands behind the dot.
        full: the same by their full name.
        loop: counts in the shortest loop that holds an integer matrix instruction; empty where there is none.
    """

    counts: Counter[str]
    full: Counter[str]
    loop: Counter[str]

    @property
    def products(self) -> dict[str, int]:
        """Integer matrix instructions by their full name."""
        return {name: count for name, count in self.full.items() if name.split(".")[0] in PRODUCTS}

    @property
    def spills(self) -> int:
        """Reads and writes of local memory."""
        return self.counts["LDL"] + self.counts["STL"]


def tool(name: str) -> Path:
    """A program that triton ships."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _run(name: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool(name), *options, file.name], capture_output=True, text=True, check=True)
    return done.stdout


def disassemble(cubin: bytes) -> Code:
    """Instructions of the kernel in a cubin."""
    counts: Counter[str] = Counter()
    full: Counter[str] = Counter()
    labels: dict[str, int] = {}
    names: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in _run("nvdisasm", "-c", cubin=cubin).splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(names)
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        counts[found[1]] += 1
        full[found[1] + found[2]] += 1
        names.append(found[1])
        target = _TARGET.search(found[3])
        if found[1] == "BRA" and target and labels.get(target[1], len(names)) < len(names) - 1:
            loops.append((labels[target[1]], len(names)))
    bodies = [names[start:stop] for start, stop in loops]
    bodies = [body for body in bodies if any(name in PRODUCTS for name in body)]
    shortest = min(bodies, key=len) if bodies else []
    return Code(counts, full, Counter(shortest))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack (spills) and of static shared memory of the kernel in a cubin."""
    text = _run("cuobjdump", "-res-usage", cubin=cubin)
    found = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"]), "local_bytes": int(found["LOCAL"])}
