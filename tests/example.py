"""The worked example of SPEC.md, section 13: two channels of z, one of y, tables small enough to write down."""

from __future__ import annotations

import numpy as np

from cdcodec.bits.coder import Tables
from cdcodec.bits.container import Header
from cdcodec.bits.tables import TableSet
from cdcodec.symbols import Symbols

Row = tuple[int, list[int]]

Z_ROW: Row = (-1, [4194304, 8388608, 4190208, 4096])
NARROW_ROW: Row = (0, [16777215, 1])
WIDE_ROW: Row = (-2, [1048576, 3145728, 8388608, 3145728, 1044480, 4096])
NARROW_ROWS = 200


def table_set(rows: list[Row]) -> TableSet:
    """A TableSet from (first, counts) pairs."""
    width = max(len(counts) for _, counts in rows)
    return TableSet(
        counts=np.array([counts + [0] * (width - len(counts)) for _, counts in rows], dtype=np.int32),
        first=np.array([first for first, _ in rows], dtype=np.int32),
        length=np.array([len(counts) for _, counts in rows], dtype=np.int32),
    )


TABLES = Tables(z=table_set([Z_ROW] * 2), y=table_set([NARROW_ROW] * NARROW_ROWS + [WIDE_ROW] * (256 - NARROW_ROWS)))

SYMBOLS = Symbols(
    z=np.array([[[1]], [[-700]]], dtype=np.int32),
    y=np.array([[[0, 1, -2], [0, 0, 300]]], dtype=np.int32),
    index=np.array([[[0, 200, 200], [0, 0, 200]]], dtype=np.uint8),
    mean=np.array([[[128, -64, 0], [0, 0, 32]]], dtype=np.int32),
    stage=np.zeros((1, 2, 3), dtype=np.uint8),
)
FRACTION_BITS = 8

WORDS = [0xFFEDF595, 0xC1F36D57, 0xE6C00000]
PAYLOAD = b"".join(word.to_bytes(4, "little") for word in WORDS)

HEADER = Header(checkpoint=0x1A2B3C4D, lam=0.0128, width=41, height=30, symbol_check=0x8E289F92, flags=0x10)
CHUNKS = {"origin": b'{"mode":"L","depth":8}'}
