"""Plain data as bytes, for the channel between a program and its tests, and the frames they travel in.

Only data goes over: no code, no names to import, no references to shared objects (a list that occurs twice arrives as
two). ``encode`` flattens a subclass to the data of its plain base, by the base's methods, so what arrives compares as
plain data does. Whatever is not data is a handle: a number by which the other side can refer to the object.

``decode`` runs in the tests' process on bytes that a program may have made up, so it trusts no tag and no length and
builds nothing but the types listed here. Left out: pickle and marshal, which run code or crash on such bytes.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from types import GeneratorType, NoneType
from typing import Any

MAX_DEPTH = 100
"""How many containers may stand inside each other."""

_TYPES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, object, type, NoneType)
_TYPE_NAMES = {cls: cls.__name__.encode() for cls in _TYPES}
_TYPES_BY_NAME = {name: cls for cls, name in _TYPE_NAMES.items()}


class UnsupportedValue(Exception):
    """A value that can't travel. ``status`` is the outcome that this makes of a program's value."""

    def __init__(self, status: str, what: str) -> None:
        super().__init__(what)
        self.status = status


class Malformed(Exception):
    """These bytes are no encoded value."""


def _pairs(items: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
    return itertools.chain.from_iterable(items)


def _dict(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _integers(items: list[Any]) -> list[int]:
    if any(type(item) is not int for item in items):
        raise Malformed("not all of them are integers")
    return items


# By type: a tag, its data as bytes, and the value from them.
_LEAVES: dict[type, tuple[bytes, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    NoneType: (b"N", lambda value: b"", lambda data: None),
    bool: (b"?", lambda value: bytes([value]), lambda data: data == b"\1"),
    int: (
        b"i",
        lambda value: int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True),
        lambda data: int.from_bytes(data, "little", signed=True),
    ),
    float: (b"f", lambda value: struct.pack("<d", value), lambda data: struct.unpack("<d", data)[0]),
    complex: (
        b"c",
        lambda value: struct.pack("<dd", value.real, value.imag),
        lambda data: complex(*struct.unpack("<dd", data)),
    ),
    str: (
        b"s",
        lambda value: str.encode(value, "utf-8", "surrogatepass"),
        lambda data: data.decode("utf-8", "surrogatepass"),
    ),
    bytes: (b"b", lambda value: b"".join((value,)), lambda data: data),
    bytearray: (b"B", lambda value: b"".join((value,)), bytearray),
    Decimal: (b"D", lambda value: Decimal.__str__(value).encode(), lambda data: Decimal(data.decode())),
    datetime: (
        b"w",
        lambda value: datetime.isoformat(value).encode(),
        lambda data: datetime.fromisoformat(data.decode()),
    ),
    date: (b"y", lambda value: date.isoformat(value).encode(), lambda data: date.fromisoformat(data.decode())),
    time: (b"h", lambda value: time.isoformat(value).encode(), lambda data: time.fromisoformat(data.decode())),
    type: (b"T", lambda value: _TYPE_NAMES[value], lambda data: _TYPES_BY_NAME[data]),
}

# By type: a tag, its items, and the value from a list of them.
_CONTAINERS: dict[type, tuple[bytes, Callable[[Any], Iterable[Any]], Callable[[list[Any]], Any]]] = {
    list: (b"[", list.__iter__, lambda items: items),
    tuple: (b"(", tuple.__iter__, tuple),
    set: (b"{", set.__iter__, set),
    frozenset: (b"<", frozenset.__iter__, frozenset),
    dict: (b":", lambda value: _pairs(dict.items(value)), _dict),
    deque: (b"q", deque.__iter__, deque),
    range: (b"r", lambda value: (value.start, value.stop, value.step), lambda items: range(*_integers(items))),
    Fraction: (b"/", lambda value: (value.numerator, value.denominator), lambda items: Fraction(*_integers(items))),
    timedelta: (
        b"d",
        lambda value: (value.days, value.seconds, value.microseconds),
        lambda items: timedelta(*_integers(items)),
    ),
    type({}.keys()): (b"k", iter, lambda items: dict.fromkeys(items).keys()),
    type({}.values()): (b"v", iter, lambda items: dict(enumerate(items)).values()),
    type({}.items()): (b"e", _pairs, lambda items: _dict(items).items()),
}
_ITERATOR = b"*"
_HANDLE = b"#"

_LEAF_TAGS = {tag: build for tag, _, build in _LEAVES.values()}
_CONTAINER_TAGS = {tag: build for tag, _, build in _CONTAINERS.values()} | {_ITERATOR: iter}


def encode(value: Any, limit: int, handle: Callable[[Any], int]) -> bytes:
    """The value as bytes. ``handle`` numbers what is not data, or raises UnsupportedValue.

    Raises UnsupportedValue for more than about ``limit`` bytes (``output_limit``) and for values nested deeper than
    ``MAX_DEPTH``, cyclic ones among them. Iterators of Python's own (generators, ``map``, ``zip``, ``itertools``) are
    used up and arrive as iterators over the same items; endless ones are too large.
    """
    out = bytearray()
    _encode(value, out, limit, handle, 0)
    return bytes(out)


def _encode(value: Any, out: bytearray, limit: int, handle: Callable[[Any], int], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsupportedValue("unsupported_value", f"a value is nested deeper than {MAX_DEPTH} levels")
    items: Iterable[Any] | None = None
    data = b""
    for base in type(value).__mro__:
        if base in _CONTAINERS:
            tag, unpack, _ = _CONTAINERS[base]
            items = unpack(value)
            break
        if base in _LEAVES and (base is not type or value in _TYPE_NAMES):
            tag, pack, _ = _LEAVES[base]
            data = pack(value)
            break
    else:
        if isinstance(value, GeneratorType) or _is_own_iterator(type(value)):
            tag, items = _ITERATOR, value
        else:
            tag, data = _HANDLE, handle(value).to_bytes(8, "little")
    out += tag
    if items is None:
        out += len(data).to_bytes(4, "little")
        out += data
        if len(out) > limit:
            raise _too_large(limit)
        return
    place, count = len(out), 0
    out += bytes(4)
    for item in items:
        _encode(item, out, limit, handle, depth + 1)
        count += 1
    out[place : place + 4] = count.to_bytes(4, "little")
    if len(out) > limit:
        raise _too_large(limit)


def _is_own_iterator(cls: type) -> bool:
    return cls.__module__ in ("builtins", "itertools") and hasattr(cls, "__next__")


def _too_large(limit: int) -> UnsupportedValue:
    return UnsupportedValue("output_limit", f"a value is larger than {limit // 1024} KiB")


def decode(data: bytes, resolve: Callable[[int], Any]) -> Any:
    """The value of these bytes; ``resolve`` turns a handle's number into an object. Raises Malformed."""
    try:
        value, end = _decode(data, 0, resolve, 0)
    except (ValueError, TypeError, LookupError, ArithmeticError, struct.error, RecursionError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from None
    if end != len(data):
        raise Malformed("bytes follow the value")
    return value


def _decode(data: bytes, place: int, resolve: Callable[[int], Any], depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise Malformed("nested too deeply")
    tag, count, place = data[place : place + 1], int.from_bytes(data[place + 1 : place + 5], "little"), place + 5
    if tag in _CONTAINER_TAGS:
        items = []
        for _ in range(count):
            if place >= len(data):
                raise Malformed("it ends early")
            item, place = _decode(data, place, resolve, depth + 1)
            items.append(item)
        return _CONTAINER_TAGS[tag](items), place
    content, end = data[place : place + count], place + count
    if end > len(data):
        raise Malformed("it ends early")
    if tag == _HANDLE:
        return resolve(int.from_bytes(content, "little")), end
    return _LEAF_TAGS[tag](content), end


def send(channel: int, data: bytes) -> None:
    """Write one frame to a descriptor. OSError if the other side is gone."""
    view = memoryview(len(data).to_bytes(4, "little") + data)
    while view:
        view = view[os.write(channel, view) :]


def receive(channel: int, limit: int) -> bytes:
    """Read one frame. EOFError if the other side is gone, Malformed if it announces more than ``limit`` bytes."""
    size = int.from_bytes(_read(channel, 4), "little")
    if size > limit:
        raise Malformed(f"a frame of {size} bytes")
    return _read(channel, size)


def _read(channel: int, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = os.read(channel, min(missing, 65536))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
