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
FLOAT64 = ("DADD", "DMUL", "DFMA", "DSETP")
WAITS = ("DEPBAR", "WARPGROUP")
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
        waits: what that loop waits for, by instruction and operands: copies into shared memory, matrix instructions.
    """

    counts: Counter[str]
    full: Counter[str]
    loop: Counter[str]
    waits: Counter[str]

    @property
    def wide_conversions(self) -> int:
        """Conversions of floats to 64-bit integers."""
        return sum(count for name, count in self.full.items() if name.startswith("F2I") and "64" in name)

    @property
    def float64(self) -> int:
        """Operations in float64."""
        own = sum(count for name, count in self.counts.items() if name in FLOAT64)
        return own + sum(count for name, count in self.full.items() if name.startswith("MUFU") and "64" in name)

    @property
    def idle_waits(self) -> int:
        """Waits of the loop for every matrix instruction that was issued: nothing is multiplied meanwhile."""
        return sum(count for text, count in self.waits.items() if text.startswith("WARPGROUP") and text.endswith("0x0"))

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
    texts: list[str] = []
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
        texts.append(f"{found[1]}{found[2]} {found[3].strip()}")
        target = _TARGET.search(found[3])
        if found[1] == "BRA" and target and labels.get(target[1], len(names)) < len(names) - 1:
            loops.append((labels[target[1]], len(names)))
    bodies = [range(start, stop) for start, stop in loops if any(name in PRODUCTS for name in names[start:stop])]
    shortest = min(bodies, key=len) if bodies else range(0)
    waits = [texts[place] for place in shortest if names[place] in WAITS and "DEPBAR" in texts[place]]
    return Code(counts, full, Counter(names[place] for place in shortest), Counter(waits))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack (spills) and of static shared memory of the kernel in a cubin."""
    text = _run("cuobjdump", "-res-usage", cubin=cubin)
    found = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"]), "local_bytes": int(found["LOCAL"])}
