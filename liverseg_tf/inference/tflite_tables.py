"""The fields of a TFLite file that are checked before it runs.

LiteRT's own reader is 20,000 lines of generated code, which is slow to import. Slots are those of the TFLite
schema (tensorflow/compiler/mlir/lite/schema/schema.fbs): 4, 6, 8 ... in the order of a table's fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flatbuffers import encode, number_types
from flatbuffers.table import Table

# Operator code of custom operators.
CUSTOM = 32


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
