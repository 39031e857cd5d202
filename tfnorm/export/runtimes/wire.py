"""Protocol buffers' wire format: as much of it as serving's messages need.

https://protobuf.dev/programming-guides/encoding. It spares the client library of TensorFlow
Serving, whose messages the warm-up file is made of, and lets a process read them that imports no
TensorFlow.
"""

from collections.abc import Iterator


def field(number: int, payload: bytes) -> bytes:
    """A field that holds a string, bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order: (number, value), where a value is an integer or bytes."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _read_varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, position = _read_varint(message, position)
            value = message[position : position + size]
            position += size
        yield tag >> 3, value


def values(message: bytes, number: int) -> list:
    """The values of one field, in order."""
    return [value for n, value in fields(message) if n == number]


def mapping(message: bytes, number: int) -> dict[str, bytes]:
    """A field of type map<string, message>."""
    entries = (dict(fields(entry)) for entry in values(message, number))
    return {entry[1].decode(): entry[2] for entry in entries}


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
