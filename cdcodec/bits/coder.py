"""Symbols to range-coder words and back: one queue, z first, then y stage by stage, grouped by scale index.

    z by channel ─► z's escapes ─► of each stage: y by scale index 0…255 ─► escapes      (SPEC.md, sections 7 and 8)

Example (`tables` and `symbols` as the checkpoint and the encoder give them):

    payload = write(symbols, tables)
    reader = Reader(payload, tables)
    z = reader.read_z(symbols.z.shape)
    for places in symbols.stages():         # the caller has computed the index from z and the stages before
        y[places] = reader.read_y(symbols.index.ravel()[places])
    reader.finish(symbols)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from cdcodec.bits.tables import ESCAPE_BITS, TableSet
from cdcodec.errors import CorruptError
from cdcodec.symbols import SYMBOL_LIMIT, Symbols

SCALE_COUNT = 256
"""Tables of y: one for each value of a uint8 scale index."""

_ESCAPE_OFFSET = 1 << (ESCAPE_BITS - 1)
_DAMAGED = "the compressed data is damaged or was made for other weights; get the file again, or the weights it names"


@dataclass(frozen=True, eq=False)
class Models:
    """A TableSet with constriction's model of each row, made when first needed."""

    tables: TableSet
    made: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, row: int) -> Any:
        """Categorical over entries 0…length-1 of `row`, with exactly the probabilities count / 2^24."""
        if row not in self.made:
            counts = self.tables.counts[row, : self.tables.length[row]]
            # With perfect=False constriction gives each entry one count and shares out the rest in proportion to the
            # floats; count - 1 makes that proportion 1. The counts themselves would be rounded to other ones.
            self.made[row] = stream.model.Categorical((counts - 1).astype(np.float64), perfect=False)
        return self.made[row]


@dataclass(frozen=True, eq=False)
class Tables:
    """All tables of one bitstream: z has a row per channel of z, y one of 256 rows per scale index.

    Keep one for as long as its model lives: it holds the coder's models, which take longer to make than to use.
    """

    z: TableSet
    y: TableSet
    z_models: Models = field(init=False, repr=False)
    y_models: Models = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.y) != SCALE_COUNT:
            raise ValueError(f"y needs {SCALE_COUNT} tables, not {len(self.y)}")
        object.__setattr__(self, "z_models", Models(self.z))
        object.__setattr__(self, "y_models", Models(self.y))


def write(symbols: Symbols, tables: Tables) -> bytes:
    """The payload: z and y as range-coder words (uint32, little-endian). Any valid Symbols can be coded.

    Raises ValueError if z has another number of channels than there are tables.
    """
    _check_channels(symbols.z.shape, tables)
    encoder = stream.queue.RangeEncoder()
    _encode(encoder, symbols.z.ravel(), _z_sizes(symbols.z.shape), tables.z_models)
    y, index = symbols.y.ravel(), symbols.index.ravel()
    for places in symbols.stages():
        there = index[places]
        _encode(encoder, y[places[_y_order(there)]], _y_sizes(there), tables.y_models)
    words: NDArray[np.uint32] = encoder.get_compressed()
    return words.astype("<u4").tobytes()


class Reader:
    """Reads one payload back, in the order it was written: read_z, then read_y for each stage, then finish.

    Every method, and the constructor, raises CorruptError for bytes that `write` cannot have produced; only `finish`
    notices all of them. ValueError means a wrong call: calls out of order, or shapes that do not fit the tables.
    """

    def __init__(self, payload: bytes, tables: Tables) -> None:
        if not payload or len(payload) % 4:
            raise CorruptError(f"the compressed data is {len(payload)} bytes, not a multiple of 4 above 0; {_DAMAGED}")
        self._payload = payload
        self._tables = tables
        self._decoder = stream.queue.RangeDecoder(np.frombuffer(payload, dtype="<u4").astype(np.uint32))
        self._read = ""
        self._bits = 8.0 * len(payload) + 1  # information of a payload never exceeds its size; 1 is for rounding

    def read_z(self, shape: tuple[int, int, int]) -> NDArray[np.int32]:
        """z as int32 of `shape` (C_z, H_z, W_z)."""
        self._advance("z", "")
        _check_channels(shape, self._tables)
        sizes = _z_sizes(shape)
        self._spend(self._tables.z.least_bits(sizes))
        return _decode(self._decoder, sizes, self._tables.z_models).reshape(shape)

    def read_y(self, index: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The symbols of one stage of y, int32, shaped as `index`, their uint8 scale index."""
        self._advance("y", "z", "y")
        if index.dtype != np.uint8:
            raise ValueError(f"the scale index must be uint8, not {index.dtype}")
        sizes = _y_sizes(index)
        self._spend(self._tables.y.least_bits(sizes))
        y = np.empty(index.size, dtype=np.int32)
        y[_y_order(index)] = _decode(self._decoder, sizes, self._tables.y_models)
        return y.reshape(index.shape)

    def finish(self, symbols: Symbols) -> None:
        """Checks that `symbols`, as read, encode to exactly this payload: nothing missing, nothing behind it."""
        # The decoder itself cannot tell: it reads zeros behind the end, and never looks at words it does not need.
        self._advance("all", "y")
        if write(symbols, self._tables) != self._payload:
            raise CorruptError(_DAMAGED)

    def _spend(self, bits: float) -> None:
        """Refuses, before anything is decoded, more symbols than the payload can hold however likely they are."""
        self._bits -= bits
        if self._bits < 0:
            raise CorruptError(f"the compressed data is too short for a picture of this size; {_DAMAGED}")

    def _advance(self, to: str, *after: str) -> None:
        if self._read not in after:
            raise ValueError("a Reader is used once: read_z, then read_y, then finish")
        self._read = to


def _check_channels(shape: tuple[int, ...], tables: Tables) -> None:
    if len(shape) != 3 or shape[0] != len(tables.z) or min(shape) < 1:
        raise ValueError(f"z of shape {tuple(shape)} does not fit the tables of {len(tables.z)} channels")


def _z_sizes(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.full(shape[0], shape[1] * shape[2], dtype=np.int64)


def _y_sizes(index: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(index.ravel(), minlength=SCALE_COUNT)


def _y_order(index: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Flat positions by scale index, in C order within each."""
    return np.argsort(index, axis=None, kind="stable")


def _groups(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(row, start, stop) of every non-empty group."""
    stops = np.cumsum(sizes)
    for row in np.flatnonzero(sizes):
        yield int(row), int(stops[row] - sizes[row]), int(stops[row])


def _encode(encoder: Any, values: NDArray[np.int32], sizes: NDArray[np.int64], models: Models) -> None:
    """Codes flat `values`, of which the first sizes[0] belong to table 0, and so on; then the escaped ones."""
    entries, escaped = models.tables.entries(values, np.repeat(np.arange(len(sizes)), sizes))
    for row, start, stop in _groups(sizes):
        encoder.encode(entries[start:stop], models[row])
    if escaped.any():
        encoder.encode(values[escaped] + np.int32(_ESCAPE_OFFSET), stream.model.Uniform(1 << ESCAPE_BITS))


def _decode(decoder: Any, sizes: NDArray[np.int64], models: Models) -> NDArray[np.int32]:
    """Inverse of _encode: flat int32 values of length sizes.sum()."""
    entries = np.empty(int(sizes.sum()), dtype=np.int32)
    for row, start, stop in _groups(sizes):
        entries[start:stop] = _take(decoder, models[row], stop - start)
    values = entries + np.repeat(models.tables.first, sizes)
    escaped = np.flatnonzero(entries == np.repeat(models.tables.length - 1, sizes))
    if escaped.size:
        raw = _take(decoder, stream.model.Uniform(1 << ESCAPE_BITS), escaped.size) - np.int32(_ESCAPE_OFFSET)
        if raw.min() < -SYMBOL_LIMIT:
            raise CorruptError(_DAMAGED)
        values[escaped] = raw
    return values


def _take(decoder: Any, model: Any, count: int) -> NDArray[np.int32]:
    """`count` entries under one model; constriction refuses impossible bits with a bare AssertionError."""
    try:
        entries: NDArray[np.int32] = decoder.decode(model, count)
    except (AssertionError, KeyError, ValueError):
        raise CorruptError(_DAMAGED) from None
    return entries
