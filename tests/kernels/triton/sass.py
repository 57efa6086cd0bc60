"""What machine code says about its assembler."""

from __future__ import annotations

import re

LINE = re.compile(r"\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9_.]+)\s*(.*?);")
PREDICATE = re.compile(r"!?U?P(?:T|\d)")
WRITERS = ("U", "R2UR", "S2UR", "CS2UR", "LDCU", "VOTEU", "REDUX", "CREDUX")
WIDTHS = {".128": 4, ".64": 2, ".WIDE": 2}


def unset_registers(sass: str) -> list[str]:
    """Instructions that read a uniform register no earlier line has set.

    ptxas 12.8 makes such code of some of our kernels: it adds to the halves of a descriptor before
    it has set them, and a product reads its tile from a stray address.
    """
    known: set[int] = set()
    found = []
    for operation, text in LINE.findall(sass):
        operands = [operand.strip() for operand in text.split(",")]
        writes = operation.startswith(WRITERS)
        target = next((i for i, o in enumerate(operands) if not PREDICATE.fullmatch(o)), 0)
        sources = operands[target + 1 :] if writes else operands
        read = {int(r) for source in sources for r in re.findall(r"\bUR(\d+)\b", source)}
        if read - known:
            found.append(f"{operation} {text.strip()}")
        known |= read
        if writes and operands:
            width = max((w for name, w in WIDTHS.items() if name in operation), default=1)
            for register in re.findall(r"\bUR(\d+)\b", operands[target]):
                known |= set(range(int(register), int(register) + width))
    return found
