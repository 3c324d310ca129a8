"""Large pictures in bounded memory: every network call tile by tile, while x_t and the latents stay whole.

A network is called on a tile grown by its reach, the distance that its output looks around, and the margin is thrown
away. So the result is that of the whole picture up to float rounding, zero padding lies at the picture's own borders
only, and nothing about tiles is in the file. The reach of the paper's U-Net is the whole picture, by its attention: its
tiles see themselves alone, overlap, and are mixed by linear ramps, which is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from cdcodec.config import SMALLEST_TILE, ModelConfig
from cdcodec.nets.smoothing import RADIUS

AUTO = {"compact": (6 * 10**6, 1024), "paper": (3 * 10**6, 640)}
"""What "auto" does, by kind of blocks: for pictures of more than so many pixels, tiles of this side. Whole, a picture
takes about 0.4 kB a pixel with compact-x in float32 (measured on a CPU), and several times that with paper-x."""
OVERLAP = SMALLEST_TILE // 4
"""How far tiles of the paper's U-Net reach beyond a cut: parts are no smaller than half a side, so two ramps meet."""


def check(tile: int | str) -> int | str:
    """The side of tiles, "auto" or "off". Raises ValueError for anything else."""
    if tile not in ("auto", "off") and not (isinstance(tile, int) and tile >= SMALLEST_TILE):
        raise ValueError(f"tile must be auto, off or at least {SMALLEST_TILE} pixels, not {tile!r}")
    return tile


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a picture, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, margin: int, whole: Box) -> Box:
        """With a margin all around, but not beyond `whole`."""
        return Box(
            max(self.top - margin, whole.top),
            min(self.bottom + margin, whole.bottom),
            max(self.left - margin, whole.left),
            min(self.right + margin, whole.right),
        )

    def of(self, tensor: Tensor, around: Box) -> Tensor:
        """This box's part, as a view, of a tensor (…, h, w) that covers the box `around` at any resolution."""
        scale = (around.bottom - around.top) // tensor.shape[-2]
        rows = slice((self.top - around.top) // scale, (self.bottom - around.top) // scale)
        return tensor[..., rows, (self.left - around.left) // scale : (self.right - around.left) // scale]


@dataclass(frozen=True)
class Tiling:
    """One picture and the boxes it is cut into: one or several, without gaps or overlap."""

    whole: Box
    boxes: list[Box]

    @classmethod
    def of(cls, size: tuple[int, int], config: ModelConfig, tile: int | str) -> Tiling:
        """A padded picture of `size` (H, W) in nearly equal boxes of sides up to `tile`, or as "auto" or "off" say."""
        if tile == "auto":
            large, side = AUTO[config.blocks]
            tile = side if size[0] * size[1] > large else "off"
        if tile == "off":
            tile = max(size)
        rows, columns = (_cuts(length, int(tile), config.padding) for length in size)
        return cls(Box(0, size[0], 0, size[1]), [Box(*a, *b) for a, b in product(rows, columns)])

    @property
    def single(self) -> bool:
        return len(self.boxes) == 1

    def run(self, call: Callable[[Box], list[Tensor]], margin: int, blend: bool = False) -> list[Tensor]:
        """What call(whole) gives, put together from calls on the boxes grown by `margin`.

        call(box) gives tensors (1, C, h, w) that cover the box, at any resolutions. With `blend` all of what it gives
        is used, mixed by linear ramps where boxes overlap; else of each box its inner part alone.
        """
        if self.single:
            return call(self.whole)
        results: list[Tensor] = []
        for box in self.boxes:
            wide = box.grown(margin, self.whole)
            parts = call(wide)
            results = results or [self._empty(part, wide) for part in parts]
            for result, part in zip(results, parts, strict=True):
                if blend:
                    wide.of(result, self.whole).add_(part * _ramps(wide, self.whole, 2 * margin, part))
                else:
                    box.of(result, self.whole).copy_(box.of(part, wide))
        return results

    def _empty(self, part: Tensor, box: Box) -> Tensor:
        """Zeros over the whole picture like `part` over the box, channels last."""
        scale = (box.bottom - box.top) // part.shape[2]
        shape = (*part.shape[:2], self.whole.bottom // scale, self.whole.right // scale)
        return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last).zero_()


def _cuts(length: int, tile: int, unit: int) -> list[tuple[int, int]]:
    """[0, length) in nearly equal parts of at most `tile`, all of them multiples of the unit."""
    units = length // unit
    count = -(-units // max(tile // unit, 1))
    ends = [units * i // count * unit for i in range(count + 1)]
    return list(pairwise(ends))


def _ramps(box: Box, whole: Box, width: int, like: Tensor) -> Tensor:
    """Weights (h, w) of a box: 1, falling linearly over `width` pixels towards the sides that are not the picture's."""
    sides = []
    for low, high, start, end in ((*box[:2], *whole[:2]), (*box[2:], *whole[2:])):
        steps = (torch.arange(high - low, dtype=like.dtype, device=like.device) + 0.5) / width
        ramp = torch.ones_like(steps)
        if low > start:
            ramp = torch.minimum(ramp, steps)
        if high < end:
            ramp = torch.minimum(ramp, steps.flip(0))
        sides.append(ramp)
    return sides[0][:, None] * sides[1]


class Reach(NamedTuple):
    """How far in pixels the outputs of three networks look beyond the place that they are for."""

    analysis: int
    synthesis: int
    unet: int

    @classmethod
    def of(cls, config: ModelConfig) -> Reach:
        """From the architecture alone; for the paper's U-Net how far its tiles overlap instead.

        Every network is a list of layers, from the output back: (pixels between its positions, positions that it looks
        to every side). A block is two 3×3 convolutions.
        """
        scales = [config.unshuffle << i for i in range(len(config.analysis_widths))]
        if config.blocks == "paper":  # a block, the first 7×7, and a strided or transposed convolution per resolution
            analysis = [(scale, 3 if scale > 1 else 5) for scale in reversed(scales)]
            return cls(_reach(analysis, config), _reach([(2 * scale, 3) for scale in scales], config), OVERLAP)

        def down(blocks: int) -> list[tuple[int, int]]:  # the blocks of each resolution, the strides, the stem
            finer = [(scale, 2 * blocks + 1) for scale in reversed(scales[:-1])]
            return [(scales[-1], 2 * blocks), *finer, (scales[0], 1)]

        def up(blocks: int) -> list[tuple[int, int]]:  # filter, head, blocks; between them 1×1 convolutions
            smoothing = [(1, RADIUS)] if config.smoothing else []
            return [*smoothing, (scales[0], 1), *((scale, 2 * blocks) for scale in scales)]

        # The U-Net has its blocks up at all resolutions but the coarsest, those down at all but the finest.
        deep = 2 * config.unet_depth
        unet = [(scales[0], 1), *((scale, deep) for scale in scales)]
        unet += [*((scale, deep + 1) for scale in reversed(scales[1:-1])), (scales[0], 2)]
        return cls(
            _reach([(scales[-1], 1), *down(config.analysis_depth)], config),
            _reach([*up(config.analysis_depth), (scales[-1], 1)], config),
            _reach(unet, config),
        )


def _reach(layers: list[tuple[int, int]], config: ModelConfig) -> int:
    """Going back to a coarser resolution, what is seen widens to whole positions, and at last to the padding's unit."""
    reach = 0
    for scale, radius in layers:
        reach = -(-reach // scale) * scale + radius * scale
    return -(-reach // config.padding) * config.padding
