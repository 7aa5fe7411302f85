"""What compiled code is made of, read with the disassembler that triton ships: no GPU is needed."""

from __future__ import annotations

import heapq
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PRODUCTS = ("IMMA", "IGMMA", "UTCIMMA")
"""Integer matrix instructions: of a warp (sm_80 to sm_120), of a warp group (sm_90a), of Blackwell's tensor memory."""
FLOAT_PRODUCTS = ("HMMA", "HGMMA", "QGMMA", "DMMA", "UTCHMMA", "UTCQMMA", "FFMA", "HFMA2")
"""What integer products and unfused floats must not have (but see `is_fused`)."""
FLOAT64 = ("DADD", "DMUL", "DFMA", "DSETP")
WAITS = ("DEPBAR", "WARPGROUP")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([.\w]*)(.*?);")
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
        float64_always: least operations in float64 on any way from the start to the end: what no branch goes around.
    """

    counts: Counter[str]
    full: Counter[str]
    loop: Counter[str]
    waits: Counter[str]
    float64_always: int

    @property
    def wide_conversions(self) -> int:
        """Conversions of floats to 64-bit integers."""
        return sum(count for name, count in self.full.items() if name.startswith("F2I") and "64" in name)

    @property
    def float64(self) -> int:
        """Operations in float64."""
        return sum(count for name, count in self.full.items() if is_float64(name))

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


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        full: name with what stands behind the dot.
        operands: as written.
        conditional: whether a predicate decides.
        target: label that it branches to, or an empty text.
    """

    full: str
    operands: str
    conditional: bool
    target: str

    @property
    def name(self) -> str:
        """Without what stands behind the dot."""
        return self.full.split(".")[0]


def is_float64(full: str) -> bool:
    """Whether an instruction of this full name computes in float64."""
    return full.split(".")[0] in FLOAT64 or (full.startswith("MUFU") and "64" in full)


def instructions_of(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions that the disassembler wrote, and the place of the first one behind each label."""
    labels: dict[str, int] = {}
    found: list[Instruction] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(found)
        read = _INSTRUCTION.match(line)
        if read:
            # a way out of a loop may be written as a call of a label
            target, operands = _TARGET.search(read[4]) if read[2] in ("BRA", "CALL") else None, read[4].strip()
            # a branch may have its condition among its operands, or depend on whether threads go apart
            conditional = read[1] is not None or (target is not None and (bool(read[3]) or operands[0] != "`"))
            found.append(Instruction(read[2] + read[3], operands, conditional, target[1] if target else ""))
    return found, labels


def least_float64(code: Sequence[Instruction], labels: Mapping[str, int]) -> int:
    """Fewest operations in float64 on any way from the start to an end; calls, for rare values, are left out."""
    least = {0: 0}
    waiting = [(0, 0)]
    while waiting:
        cost, place = heapq.heappop(waiting)
        if cost > least[place]:
            continue
        one = code[place]
        if one.name == "EXIT" and not one.conditional:
            return cost
        always = one.name == "BRA" and not one.conditional
        following = ([] if always else [place + 1]) + ([labels[one.target]] if one.target in labels else [])
        spent = cost + is_float64(one.full)
        for step in following:
            if step < len(code) and spent < least.get(step, spent + 1):
                least[step] = spent
                heapq.heappush(waiting, (spent, step))
    raise ValueError("the code has no end")


def disassemble(cubin: bytes) -> Code:
    """Instructions of the kernel in a cubin."""
    code, labels = instructions_of(_run("nvdisasm", "-c", cubin=cubin))
    loops = [
        range(labels[one.target], place + 1)
        for place, one in enumerate(code)
        if one.name == "BRA" and labels.get(one.target, len(code)) < place
    ]
    bodies = [loop for loop in loops if any(code[place].name in PRODUCTS for place in loop)]
    shortest = [code[place] for place in min(bodies, key=len)] if bodies else []
    waits = [f"{one.full} {one.operands}" for one in shortest if one.name in WAITS and "DEPBAR" in one.full]
    return Code(
        counts=Counter(one.name for one in code),
        full=Counter(one.full for one in code),
        loop=Counter(one.name for one in shortest),
        waits=Counter(waits),
        float64_always=least_float64(code, labels),
    )


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack (spills) and of static shared memory of the kernel in a cubin."""
    text = _run("cuobjdump", "-res-usage", cubin=cubin)
    found = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"]), "local_bytes": int(found["LOCAL"])}
