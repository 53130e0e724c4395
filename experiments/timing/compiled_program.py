"""What the text of a compiled program says of its operations: what kind each is, and whose."""

import re
from collections import defaultdict
from typing import NamedTuple

KINDS = {
    "convolutions": {"convolution"},
    "matrix products": {"dot"},
    "reductions": {"reduce", "reduce-window"},
    "transpositions and copies": {"transpose", "copy"},
    "elementwise loops": set(),
    "other": {"scatter", "sort", "custom-call"},
}
"""The opcodes that make an operation one of a kind, whatever else is fused into it."""
_MOVES = {
    *("bitcast", "broadcast", "concatenate", "constant", "dynamic-slice", "gather", "iota"),
    *("pad", "parameter", "reshape", "reverse", "slice"),
}
"""The opcodes that compute nothing: a loop of these alone is a copy."""
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?:\(.*?\)|\S+) (?P<opcode>[\w-]+)"
    r"\((?P<operands>[^)]*)\)(?P<attributes>.*)"
)


class Operation(NamedTuple):
    """One instruction.

    Attributes:
      opcodes: what it does: its own, or for a fusion those of what is fused.
      operands: the names of the operations whose results it reads.
      source: where it comes from: the path of modules and the primitive, the path of an argument,
        or "" where the compiler lost it.
    """

    opcodes: set[str]
    operands: list[str]
    source: str

    def path(self) -> str:
        """The Flax module that it computes, as "backbone/conv2/norm, backward", if any.

        Of an argument, its own path, as "backbone/conv2/kernel".
        """
        keys = re.findall(r"\['(\w+)'\]", self.source)
        if keys:
            return "/".join(keys)
        # Transformations and einsums have other characters; a choice of platform is a cond.
        parts = [part for part in self.source.split("/")[:-1] if re.fullmatch(r"\w+", part)]
        modules = [part for part in parts if part != "cond" and not part.startswith("branch_")]
        backward = ", backward" if modules and "transpose(jvp" in self.source else ""
        return "/".join(modules) + backward


class Program(NamedTuple):
    """The operations of a compiled program, by name, and the names of those that read each."""

    operations: dict[str, Operation]
    readers: dict[str, list[str]]

    def kind(self, name: str) -> str:
        """One of `KINDS`; "other" for a name that the program does not have."""
        if name not in self.operations:
            return "other"
        opcodes = self.operations[name].opcodes
        for kind, telling in KINDS.items():
            if opcodes & telling:
                return kind
        return "transpositions and copies" if opcodes <= _MOVES else "elementwise loops"

    def layer(self, name: str) -> str:
        """The path of the module or the parameter that an operation computes; "" if of none.

        What the compiler made of a kernel's gradient has lost its source: it belongs to the
        parameter that its result updates.
        """
        if name not in self.operations:
            return ""
        operation = self.operations[name]
        arguments = [
            self.operations[read] for read in operation.operands if read in self.operations
        ]
        paths = [operation.path()]
        paths += [read.path() for read in arguments if read.opcodes == {"parameter"}]
        if not operation.source:
            paths += [self.layer(reader) for reader in self.readers.get(name, [])]
        return next(filter(None, paths), "")


def parse(text: str) -> Program:
    """Reads `jax.stages.Compiled.as_text()`."""
    opcodes = defaultdict(set)  # of each computation; the last is the program's own
    computation, instructions = "", []
    for line in text.splitlines():
        if line.endswith("{"):
            computation, instructions = line.removeprefix("%").split()[0], []
        elif instruction := _INSTRUCTION.match(line):
            opcodes[computation].add(instruction["opcode"])
            instructions.append(instruction)
    operations, readers = {}, defaultdict(list)
    for instruction in instructions:
        fused = re.search(r"calls=%([\w.-]+)", instruction["attributes"])
        source = re.search(r'op_name="([^"]*)"', instruction["attributes"])
        operands = re.findall(r"%([\w.-]+)", instruction["operands"])
        operations[instruction["name"]] = Operation(
            opcodes[fused[1]] if fused else {instruction["opcode"]},
            operands,
            source[1].replace("\\", "") if source else "",
        )
        for operand in operands:
            readers[operand].append(instruction["name"])
    return Program(operations, readers)
