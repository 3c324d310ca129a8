"""The range coder of SPEC.md, section 8, with unbounded integers and no other source: slow, and hard to get wrong."""

from __future__ import annotations


def encode(intervals: list[tuple[int, int]]) -> list[int]:
    """32-bit words for a sequence of (cumulative, count), both in units of 2^-24."""
    low, span, shifts = 0, 2**64 - 1, 0
    for cumulative, count in intervals:
        unit = span >> 24
        low, span = low + unit * cumulative, unit * count
        if span < 2**32:
            low, span, shifts = low << 32, span << 32, shifts + 1
    last = (low + 2**32 - 1) >> 32
    words = [(last >> 32 * place) & 0xFFFFFFFF for place in range(shifts, -1, -1)]
    return words + [0] * ((low + span) >> 32 == last)


class Decoder:
    """Reads entries back from 32-bit words."""

    def __init__(self, words: list[int]) -> None:
        self._words = iter(words)
        self._offset = self._word() << 32 | self._word()
        self._span = 2**64 - 1

    def take(self, counts: list[int]) -> int:
        """The next entry under a table of counts that sum to 2^24; ValueError if the words belong to no entry."""
        unit = self._span >> 24
        place, cumulative = self._offset // unit, 0
        for entry, count in enumerate(counts):
            if place < cumulative + count:
                self._offset -= unit * cumulative
                self._span = unit * count
                if self._span < 2**32:
                    self._offset, self._span = self._offset << 32 | self._word(), self._span << 32
                return entry
            cumulative += count
        raise ValueError("no entry")

    def _word(self) -> int:
        return next(self._words, 0)
