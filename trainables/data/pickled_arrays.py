"""The dict of arrays, lists, text and numbers of a CIFAR batch, read from its pickle as data.

A pickle is a program, and ``pickle.Unpickler`` runs it: even with a table of admitted names it
calls them with whatever the file says, which ``numpy.ndarray`` answers by reading memory out of
bounds. Here ``pickletools`` only splits the file into opcodes. Those that the official archives
use are interpreted below, and the four names that numpy writes stand for functions of this file.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = ("u1", "i4", "i8")  # pixels; labels, where somebody has written them as an array
MOST_DIMENSIONS = 4


class UnreadablePickle(ValueError):
    """The bytes are no pickle, or one that says more than a batch of images has to say."""


@dataclass(frozen=True)
class _Name:
    """What a pickle names, ``MODULE.NAME``; nothing is imported."""

    text: str


class _Mark:
    """Where on the stack the items of a container begin."""


@dataclass
class _Dtype:
    name: str


@dataclass
class _Array:
    """An array before and after its state has come."""

    values: npt.NDArray[Any] | None = None


NDARRAY = "numpy.ndarray"
_MARK = _Mark()


def load_arrays(content: bytes) -> dict[str, object]:
    """The dict pickled in ``content`` (by Python 2 or 3), its keys as ``str``.

    Raises :class:`UnreadablePickle` on anything but containers, text, whole numbers and arrays of
    ``DTYPES`` whose bytes are exactly those that their shape needs. Keys are text. A container may
    hold itself, or one list a million times: look at the kind of each item before you convert or
    print it.
    """
    try:
        value = _Reader().read(content)
    except UnreadablePickle:
        raise
    except Exception as error:  # pickletools raises anything on broken bytes
        reason = " ".join(str(error).split())[:200]
        raise UnreadablePickle(f"broken pickle: {reason or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise UnreadablePickle(f"holds a {type(value).__name__}, not a dict")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): _plain(item)
        for key, item in value.items()
    }


def _plain(value: object) -> object:
    """The array of a finished :class:`_Array`; anything else as it is."""
    if isinstance(value, _Array):
        if value.values is None:
            raise UnreadablePickle("an array without a state")
        return value.values
    if isinstance(value, _Name | _Dtype):
        raise UnreadablePickle("a name where a value belongs")
    return value


class _Reader:
    """A stack and a memo, as the pickle protocol has them."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, content: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return self._pop()
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise UnreadablePickle(f"{opcode.name} is not admitted")
            action(self, argument)
        raise UnreadablePickle("it has no end")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise UnreadablePickle("its stack is empty")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        raise UnreadablePickle("it has no mark")

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise UnreadablePickle(f"no {kind.__name__} to fill")
        return self._stack[-1]

    # What the opcodes do.

    def ignore(self, argument: object) -> None:
        """The protocol's number and the size of a frame say nothing that is needed."""

    def value(self, argument: object) -> None:
        self._push(argument)

    def mark(self, argument: object) -> None:
        self._push(_MARK)

    def empty_dict(self, argument: object) -> None:
        self._push({})

    def empty_list(self, argument: object) -> None:
        self._push([])

    def dict_of_items(self, argument: object) -> None:
        items = self._pop_to_mark()
        self._push({})
        self._set(items)

    def list_of_items(self, argument: object) -> None:
        self._push(self._pop_to_mark())

    def tuple_of_items(self, argument: object) -> None:
        self._push(tuple(self._pop_to_mark()))

    def set_item(self, argument: object) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, argument: object) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2 or not all(isinstance(key, str | bytes) for key in items[::2]):
            raise UnreadablePickle("a key that is no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, argument: object) -> None:
        item = self._pop()
        self._top(list).append(item)

    def appends(self, argument: object) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def put(self, argument: int | None) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise UnreadablePickle("nothing to remember")
        self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]

    def get(self, argument: int) -> None:
        if argument not in self._memo:
            raise UnreadablePickle(f"nothing was remembered as {argument}")
        self._push(self._memo[argument])

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def name_of_stack(self, argument: object) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _name(self, module: object, name: object) -> None:
        text = f"{module}.{name}" if type(module) is type(name) is str else "what has no name"
        if text != NDARRAY and text not in _CALLS:
            raise UnreadablePickle(f"{text[:100]} is not admitted")
        self._push(_Name(text))

    def reduce(self, argument: object) -> None:
        arguments, function = self._pop(), self._pop()
        call = _CALLS.get(function.text) if isinstance(function, _Name) else None
        if call is None or not isinstance(arguments, tuple):
            raise UnreadablePickle("a call of what is no function")
        self._push(call(*arguments))

    def build(self, argument: object) -> None:
        state = self._pop()
        target = self._stack[-1] if self._stack else None
        if isinstance(target, _Array) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, is_fortran, content = state
            target.values = _array(content, dtype, shape, bool(is_fortran))
        elif isinstance(target, _Dtype) and isinstance(state, tuple) and len(state) > 1:
            if state[1] not in ("|", "<", "="):
                raise UnreadablePickle("an array of another byte order")
        else:
            raise UnreadablePickle("a state of what has none")


def _array(content: object, dtype: object, shape: object, is_fortran: bool) -> npt.NDArray[Any]:
    """The array; raises where its bytes are not exactly those that the shape needs."""
    if isinstance(content, str):
        content = content.encode("latin1")  # Python 2 has one kind of text
    is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not (is_shape and isinstance(shape, tuple) and len(shape) <= MOST_DIMENSIONS):
        raise UnreadablePickle("an array of another shape")
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise UnreadablePickle("an array without bytes or dtype")
    kind = np.dtype(f"<{dtype.name}")
    if math.prod(shape) * kind.itemsize != len(content):
        raise UnreadablePickle(f"{len(content)} bytes for an array of shape {shape} {dtype.name}")
    flat = np.frombuffer(bytes(content), kind)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """numpy begins with an empty array, and its state follows."""
    if not (isinstance(kind, _Name) and kind.text == NDARRAY):
        raise UnreadablePickle("an array of another kind")
    return _Array()


def _dtype(name: object, *flags: object) -> _Dtype:
    if isinstance(name, bytes):
        name = name.decode("latin1")
    if name not in DTYPES:
        raise UnreadablePickle(f"arrays hold {', '.join(DTYPES)}; got {_short(name)}")
    return _Dtype(str(name))


def _from_buffer(content: object, dtype: object, shape: object, order: object) -> _Array:
    return _Array(_array(content, dtype, shape, order == "F"))


def _latin1(text: object, encoding: object = "latin1") -> bytes:
    """How Python 3 writes ``bytes`` in old protocols; any other codec is refused."""
    if encoding != "latin1" or not isinstance(text, str):
        raise UnreadablePickle(f"codec {_short(encoding)} is not admitted")
    return text.encode("latin1")


def _short(value: object) -> str:
    """Text as it is; of a container, whose text may have no end, the kind."""
    return repr(value[:20]) if isinstance(value, str) else f"a {type(value).__name__}"


# By the names of numpy before and since numpy 2.
_CALLS: dict[str, Callable[..., object]] = {
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _latin1,
}


def _tuple_of(count: int) -> Callable[[_Reader, object], None]:
    def action(reader: _Reader, argument: object) -> None:
        reader._push(tuple([reader._pop() for _ in range(count)][::-1]))

    return action


def _constant(value: object) -> Callable[[_Reader, object], None]:
    return lambda reader, argument: reader._push(value)


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    **dict.fromkeys(_VALUES.split(), _Reader.value),
    **dict.fromkeys(("PROTO", "FRAME"), _Reader.ignore),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Reader.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Reader.get),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _Reader.mark,
    "EMPTY_DICT": _Reader.empty_dict,
    "EMPTY_LIST": _Reader.empty_list,
    "DICT": _Reader.dict_of_items,
    "LIST": _Reader.list_of_items,
    "TUPLE": _Reader.tuple_of_items,
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "SETITEM": _Reader.set_item,
    "SETITEMS": _Reader.set_items,
    "APPEND": _Reader.append,
    "APPENDS": _Reader.appends,
    "GLOBAL": _Reader.name,
    "STACK_GLOBAL": _Reader.name_of_stack,
    "REDUCE": _Reader.reduce,
    "BUILD": _Reader.build,
}
