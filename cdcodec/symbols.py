"""The seam: tensors and floats on its left, integers and bytes on its right."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SYMBOL_LIMIT = 2**15 - 1
"""Largest magnitude of a symbol of z or y; the encoder saturates there."""


@dataclass(frozen=True)
class Symbols:
    """The integers one image is coded as.

    z: int32 (C_z, H_z, W_z), the quantised hyper-latent, within ±SYMBOL_LIMIT.
    y: int32 (C_y, H_y, W_y), s = round(y - μ), the quantised content latent less its mean, within ±SYMBOL_LIMIT.
    index: uint8 (C_y, H_y, W_y), which of the 256 scale tables codes each element of y.
    mean: int32 (C_y, H_y, W_y), μ in units of 1/2^f, f = `fraction_bits` of the integer hyper-synthesis.
    stage: uint8 (C_y, H_y, W_y), in which stage each element of y is coded.
    """

    z: NDArray[np.int32]
    y: NDArray[np.int32]
    index: NDArray[np.uint8]
    mean: NDArray[np.int32]
    stage: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.z.dtype != np.int32 or self.y.dtype != np.int32 or self.mean.dtype != np.int32:
            raise TypeError("z, y and mean must be int32")
        if self.index.dtype != np.uint8 or self.stage.dtype != np.uint8:
            raise TypeError("index and stage must be uint8")
        shapes = [array.shape for array in (self.z, self.y, self.index, self.mean, self.stage)]
        if len(set(shapes[1:])) > 1 or self.z.ndim != 3 or self.y.ndim != 3:
            raise ValueError(f"the shapes of z, y, index, mean and stage disagree: {shapes}")
        for name, values in (("z", self.z), ("y", self.y)):
            if values.size and max(int(values.max()), -int(values.min())) > SYMBOL_LIMIT:
                raise ValueError(f"a symbol of {name} lies outside ±{SYMBOL_LIMIT}")

    def stages(self) -> Iterator[NDArray[np.int64]]:
        """Flat positions of y stage by stage, in C order within each."""
        for stage in range(int(self.stage.max(initial=0)) + 1):
            yield np.flatnonzero(self.stage == stage)

    def latent(self, fraction_bits: int) -> NDArray[np.int32]:
        """ŷ = s + μ as int32 in units of 1/2^fraction_bits, shape (C_y, H_y, W_y)."""
        return (self.y << fraction_bits) + self.mean

    def check(self, fraction_bits: int) -> int:
        """CRC-32 over little-endian int32 of z, then of ŷ·2^f: the header's symbol check."""
        crc = zlib.crc32(np.ascontiguousarray(self.z, dtype="<i4").tobytes())
        return zlib.crc32(np.ascontiguousarray(self.latent(fraction_bits), dtype="<i4").tobytes(), crc)
