"""The fields of a TFLite file that are checked before it runs.

LiteRT's own reader is 20,000 lines of generated code, which is slow to import. Slots are those of the TFLite
schema (tensorflow/compiler/mlir/lite/schema/schema.fbs): 4, 6, 8 ... in the order of a table's fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from flatbuffers import encode, number_types
from flatbuffers.table import Table

# Operator code of custom operators.
CUSTOM = 32
_RESHAPE = 22
# Operators of networks whose result at a place depends on what lies around it, and on no size but that of their input:
# ADD, AVERAGE_POOL_2D, CONCATENATION, CONV_2D, DEPTHWISE_CONV_2D, DEQUANTIZE, MAX_POOL_2D, MUL, RELU, RELU6, RESHAPE,
# PAD, SUB, TILE, QUANTIZE.
_OF_ANY_SIZE = {0, 1, 2, 3, 4, 6, 17, 18, 19, 21, _RESHAPE, 34, 41, 69, 114}


@dataclass(frozen=True)
class OperatorCode:
    """The kind of some of the operators."""

    codes: tuple[int, int]  # the old field of a byte, and the one that took its place
    custom_name: bytes | None

    @property
    def is_builtin(self) -> bool:
        return CUSTOM not in self.codes and not self.custom_name


class TFLiteTables:
    """A TFLite file's tables.

    Offsets are not verified: reading a broken file may raise any error.

    Attributes:
        model, graph: the file's root, and its first graph.
    """

    def __init__(self, content: bytes):
        self.model = Table(content, encode.Get(number_types.UOffsetTFlags.packer_type, content, 0))

    @property
    def graph(self) -> Table:
        return next(_tables(self.model, 8))

    def operator_codes(self) -> Iterator[OperatorCode]:
        """The operator codes of the file."""
        for table in _tables(self.model, 6):
            codes = (
                table.GetSlot(4, 0, number_types.Int8Flags),
                table.GetSlot(10, 0, number_types.Int32Flags),
            )
            yield OperatorCode(codes, _text(table, 6))

    def tensor_names(self) -> list[bytes | None]:
        """Names of the graph's tensors, in order."""
        return [_text(table, 10) for table in _tables(self.graph, 4)]

    def outputs(self) -> list[list[int]]:
        """Which tensors each of the graph's operators writes, in the operators' order."""
        return [list(_numbers(table, 8)) for table in _tables(self.graph, 10)]

    def is_of_any_size(self) -> bool:
        """Whether images of other rows and columns can go through the graph once it is `resized`."""
        if not {kind for kind, _ in self._operators()} <= _OF_ANY_SIZE:
            return False
        return all(at and _columns_axis(self._integers(at)) for at in self._target_shapes())

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> bytes:
        """The file for images of other rows and columns; LiteRT computes all shapes but those that are constants."""
        content, end = memoryview(self.model.Bytes), 0
        parts: list[memoryview | bytes] = []
        for at in sorted({at for at in self._target_shapes() if at}):
            shape = self._integers(at)
            for axis, old, new in zip((1, _columns_axis(shape) or 2), before, after, strict=True):
                shape[axis] = shape[axis] * new // old
            new_shape = struct.pack(f"<{len(shape)}i", *shape)
            parts += [content[end : at + 4], new_shape]
            end = at + 4 + len(new_shape)
        return b"".join([*parts, content[end:]])

    def _operators(self) -> Iterator[tuple[int, Table]]:
        """The kind of each of the graph's operators, and its table."""
        kinds = [max(code.codes) for code in self.operator_codes()]
        for table in _tables(self.graph, 10):
            yield kinds[table.GetSlot(4, 0, number_types.Uint32Flags)], table

    def _target_shapes(self) -> Iterator[int | None]:
        """Where the constants stand that are the shapes of RESHAPE's results; None for one that is no constant."""
        tensors, buffers = list(_tables(self.graph, 4)), list(_tables(self.model, 12))
        for kind, table in self._operators():
            if kind == _RESHAPE:
                inputs = list(_numbers(table, 6))
                number = tensors[inputs[1]].GetSlot(8, 0, number_types.Uint32Flags) if len(inputs) > 1 else 0
                data = buffers[number].Offset(4)
                yield buffers[number].Vector(data) - 4 if data else None

    def _integers(self, at: int) -> list[int]:
        """A vector of int32 whose length in bytes stands at a place."""
        count = struct.unpack_from("<I", self.model.Bytes, at)[0] // 4
        return list(struct.unpack_from(f"<{count}i", self.model.Bytes, at + 4))


def _columns_axis(shape: list[int]) -> int | None:
    """The axis of columns in (1, rows, columns, channels), also with an axis to repeat rows or columns along."""
    if len(shape) == 5 and 1 in shape[2:4]:
        return 3 if shape[2] == 1 else 2
    return 2 if len(shape) == 4 else None


def _tables(table: Table, slot: int) -> Iterator[Table]:
    for at in _elements(table, slot):
        yield Table(table.Bytes, table.Indirect(at))


def _numbers(table: Table, slot: int) -> Iterator[int]:
    for at in _elements(table, slot):
        yield table.Get(number_types.Int32Flags, at)


def _elements(table: Table, slot: int) -> Iterator[int]:
    """Where the elements, four bytes each, of a table's vector lie."""
    if offset := table.Offset(slot):
        start = table.Vector(offset)
        yield from range(start, start + 4 * table.VectorLen(offset), 4)


def _text(table: Table, slot: int) -> bytes | None:
    offset = table.Offset(slot)
    return table.String(table.Pos + offset) if offset else None
