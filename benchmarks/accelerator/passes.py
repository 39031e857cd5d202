"""How often a compiled program goes over arrays of the size of x: read from its HLO text.

What is counted are the instructions of the entry computation, each of which is a kernel of its own
(or, fused, one for several operations): arrays of as many elements as x that it takes are reads,
those that it returns are writes. An instruction that looks at some elements of x alone, by slices
or gathers, does not read it; nor does one that takes it from a TPU's own memory, where XLA keeps
arrays that fit. Bodies of loops are not looked into.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# Views and bookkeeping, for which nothing moves; the second half of what was counted at its start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "after-all",
    "async-done", "async-update", "slice-done",
}  # fmt: skip
_LOOKS = {"slice", "gather", "dynamic-slice", "slice-start"}
_VIEWS = {"bitcast", "reshape", "copy", "convert", "transpose"}
_SHAPE = re.compile(r"\b[a-z][a-z0-9]*\[([0-9,]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")


@dataclasses.dataclass(frozen=True)
class Passes:
    """Of one program.

    Attributes:
        kernels: instructions that read or write an array of the size of x.
        reads: arrays of that size which they take.
        writes: arrays of that size which they return.
    """

    kernels: int
    reads: int
    writes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    sizes: tuple[int, ...]  # elements of each array of the result, 0 in a TPU's own memory
    operation: str
    operands: tuple[str, ...]
    called: str | None


def count(hlo: str, elements: int) -> Passes:
    """The passes of an optimized module over arrays of so many elements."""
    computations, entry = _parse(hlo)
    by_name = {instruction.name: instruction for instruction in computations[entry]}
    kernels = reads = writes = 0
    for instruction in computations[entry]:
        if instruction.operation in _FREE:
            continue
        taken = {
            (_array(name, by_name), index)
            for index, name in enumerate(instruction.operands)
            if elements in by_name[name].sizes and len(by_name[name].sizes) == 1
        }
        seen = {array for array, i in taken if _reads(instruction, i, elements, computations)}
        # That of a copy's start names the source too.
        results = 1 if instruction.operation == "copy-start" else None
        returned = instruction.sizes[:results].count(elements)
        kernels += bool(seen or returned)
        reads += len(seen)
        writes += returned
    return Passes(kernels, reads, writes)


def _array(name: str, by_name: dict[str, _Instruction]) -> str:
    """The instruction whose memory a name shows in another shape."""
    while by_name[name].operation == "bitcast":
        name = by_name[name].operands[0]
    return name


def _reads(
    instruction: _Instruction,
    index: int,
    elements: int,
    computations: dict[str, list[_Instruction]],
) -> bool:
    """Whether it reads all of its operand of that number."""
    if instruction.operation in _LOOKS:
        return elements in instruction.sizes
    if instruction.operation not in ("fusion", "call"):
        return True
    body = computations[instruction.called]
    parameters = [i for i in body if i.operation == "parameter"]
    (parameter,) = [i for i in parameters if i.operands == (str(index),)]
    return any(_reads_of(parameter.name, body, elements, computations))


def _reads_of(
    name: str, body: list[_Instruction], elements: int, computations: dict[str, list[_Instruction]]
) -> Iterator[bool]:
    for user in body:
        for index, operand in enumerate(user.operands):
            if operand != name or user.operation == "parameter":
                continue
            if user.operation in _VIEWS and elements in user.sizes and user is not body[-1]:
                yield from _reads_of(user.name, body, elements, computations)
            else:
                yield _reads(user, index, elements, computations)


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(*found.groups()[1:]))
    return computations, entry


def _instruction(name: str, shape: str, operation: str, rest: str) -> _Instruction:
    sizes = tuple(
        0 if "S(1)" in layout else math.prod(int(size) for size in dimensions.split(",") if size)
        for dimensions, layout in _SHAPE.findall(shape)
    )
    inside, after = _split(rest)
    names = re.findall(r"%([\w.\-]+)", inside)
    operands = (inside,) if operation == "parameter" else tuple(names)
    called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", after)
    return _Instruction(name, sizes, operation, operands, called[1] if called else None)


def _split(rest: str) -> tuple[str, str]:
    """What stands before the closing parenthesis of the operands, and after it."""
    depth = 1
    for position, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return rest[:position], rest[position + 1 :]
    return rest, ""
