"""What the pickle inside a file of tensors would make, found out before any of it is made.

`torch.load` with `weights_only=True` executes nothing, but what it may call can be made to take any
amount of memory: a text of a megabyte that is encoded a million times, a shape of a million
numbers. So the pickle is walked first with a size in place of each value.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from typing import BinaryIO

from onward.words.language import _

MAX_PICKLE_BYTES = 32 << 20  # some 200 for each tensor, and 9 for each number of a history
PROTOCOL = 2  # torch's

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Int", "Long", "Short", "Char", "Byte", "Bool")
DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
)  # fmt: skip
# What checkpoints of this program name: tensors, ordered dicts, bytes.
TENSORS = frozenset(
    {
        "collections.OrderedDict",
        "_codecs.encode",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch.storage.UntypedStorage",
        "torch.ComplexFloatStorage",
        "torch.ComplexDoubleStorage",
        *(f"torch.{name}Storage" for name in _STORAGES),
        *(f"torch.{name}" for name in DTYPES),
    }
)
# What stands in a pickle beside the class that the user would know.
_INCIDENTAL = {"copyreg._reconstructor", "builtins.object", "builtins.getattr"}
# Of an opcode: how many values it takes off the stack, beside those down to a mark.
_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_ADDED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}  # to what then lies on top
_CONSTANTS = {
    "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
    "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1",
}  # fmt: skip


class UnreadableFile(ValueError):
    """Why a file is not read, in half a line; whoever reads it says which file."""


def check_pickle(file: BinaryIO, allowed: Collection[str]) -> int:
    """Walk the pickle that begins at the position of `file`; return how long it is.

    Args:
        file: It is left behind the pickle's end.
        allowed: The names of what it may call or refer to.

    Raises:
        UnreadableFile: It names something else, or would grow far beyond its own size, or is none.
    """
    start = file.tell()
    try:
        walk = _Walk(allowed)
        for opcode, argument, _position in pickletools.genops(file):
            walk.take(opcode.name, argument)
            if file.tell() - start > MAX_PICKLE_BYTES:
                raise UnreadableFile(_("beside its tensors it holds more than 32 MiB"))
        num_bytes = file.tell() - start
    except UnreadableFile:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        told = _("what it holds cannot be read ({found})")
        raise UnreadableFile(told.format(found=found)) from error
    if walk.refused:
        names = sorted(walk.refused - _INCIDENTAL) or sorted(walk.refused)
        raise UnreadableFile(
            _("it holds code ({code}), and nothing in a checkpoint is executed").format(
                code=", ".join(names[:3])
            )
        )
    if walk.num_called > 16 * num_bytes + 65536:
        raise UnreadableFile(
            _("its {num_bytes:,} bytes would grow when read").format(num_bytes=num_bytes)
        )
    return num_bytes


class _Walk:
    """The stack of a pickle, with for each value a list of one number: how large it is.

    A list since a value that is on the stack twice grows in both places.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._stack: list[list[int]] = []
        self._below: list[list[list[int]]] = []  # what lies under each mark
        self._memo: dict[int, list[int]] = {}
        self._storage = [1]  # stands for each type of a storage
        self.refused: set[str] = set()
        self.num_called = 0  # what was handed to functions, in all

    def take(self, name: str, argument: object) -> None:
        """Do to the sizes what an instruction does to the values."""
        stack = self._stack
        if name == "PROTO":
            if argument != PROTOCOL:
                raise UnreadableFile(
                    _(
                        "it was saved with pickle protocol {protocol}, and torch reads only {own} "
                        "safely: save it again by torch.save without pickle_protocol"
                    ).format(protocol=argument, own=PROTOCOL)
                )
        elif name in _CONSTANTS:
            size = len(argument) if isinstance(argument, str | bytes) else 0
            stack.append([1 + size])
        elif name == "GLOBAL":
            self._name(str(argument))
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS"):
            self._stack = self._below.pop()
            size = sum(value[0] for value in stack)
            if name == "TUPLE":
                self._stack.append([1 + size])
            else:
                self._stack[-1][0] += size
        elif name in _TAKEN:
            taken = [stack.pop() for _number in range(_TAKEN[name])]
            size = sum(value[0] for value in taken)
            if name in ("REDUCE", "NEWOBJ"):
                self.num_called += size
                if taken[-1] is self._storage:  # it would be of any size
                    raise UnreadableFile(_("it holds a tensor of a kind that is not read"))
            stack.append([1 if name == "BINPERSID" else 1 + size])
        elif name in _ADDED:
            size = sum(stack.pop()[0] for _number in range(_ADDED[name]))
            self.num_called += size if name == "BUILD" else 0
            stack[-1][0] += size
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = stack[-1]  # type: ignore[call-overload]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[int(argument)])  # type: ignore[call-overload]
        elif name != "STOP":
            raise ValueError(name)

    def _name(self, argument: str) -> None:
        module, _space, name = argument.partition(" ")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if f"{module}.{name}" not in self._allowed:
            self.refused.add(f"{module}.{name}")
        self._stack.append(self._storage if name.endswith("Storage") else [1])
