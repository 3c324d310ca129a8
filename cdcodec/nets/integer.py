"""The hyper-synthesis in integers: z, and stage by stage y, → scale index and mean, the same on every machine.

Weights, biases and activations are integers, carried in float64 tensors: every partial sum of a convolution stays below
2^53, where float64 is exact, so neither the order of summation nor threads, batch or device can change it. Between the
layers a shift with rounding brings the sums back to fixed point (SPEC.md, section 6). Always on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.hyperprior import TOLD_LIMIT, HyperSynthesis, Stage, stages
from cdcodec.symbols import SYMBOL_LIMIT, Symbols

WEIGHT_LIMIT = 2**14
ACTIVATION_BITS, ACTIVATION_LIMIT = 10, 2**24 - 1
"""Activations between layers are in units of 1/2^10, or where there are medians 1/2^f (in refinements 1/2^10 always),
and saturate at ±(2^24 - 1)."""
SLOPE_BITS = 16
SUM_LIMIT = 2**52
LEAVES, PARTS = ("weight", "bias", "shift"), ("told", "given", "around", "out")
STRIP_ELEMENTS = 2**23
"""A convolution is computed in strips of rows whose unfolded input has at most about this many elements."""
EVERY = slice(None)


@dataclass(frozen=True)
class IntegerLayer:
    """One convolution, zero-padded to keep the size: sums = weight ∗ input + bias, output = (sums + half) >> shift.

    weight: int16 (C_out, C_in, k, k), k 1 or 3. bias: int64 (C_out,), in the units of the sums. shift: uint8 (C_out,),
    from 1 to 40.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        """Raises ValueError for tensors (from files) of another kind or with sums that could leave exact arithmetic."""
        w, b, s = self.weight, self.bias, self.shift
        if w.dtype != torch.int16 or b.dtype != torch.int64 or s.dtype != torch.uint8:
            raise ValueError("an integer layer needs int16 weights, int64 biases and uint8 shifts")
        if w.ndim != 4 or w.shape[2:] not in ((1, 1), (3, 3)) or not b.shape == s.shape == w.shape[:1]:
            raise ValueError(f"integer layer of shapes {tuple(w.shape)}, {tuple(b.shape)}, {tuple(s.shape)}")
        largest = w.double().abs().sum(dim=(1, 2, 3)) * ACTIVATION_LIMIT + b.double().abs()
        if not bool((largest < SUM_LIMIT).all()) or int(s.min()) < 1 or int(s.max()) > 40:
            raise ValueError("an integer layer could leave the range of exact arithmetic")

    @cached_property
    def exact(self) -> tuple[Tensor, Tensor]:
        """Weight, and bias with the half for rounding, in float64 and units of the output: sums are shifted already.

        A power of two changes no digit of a float, so that what was exact in integers is exact here too.
        """
        unit = torch.ldexp(torch.ones(len(self.shift), dtype=torch.float64), -self.shift.int())
        return self.weight * unit[:, None, None, None], self.bias * unit + 0.5

    def __call__(self, x: Tensor, rows: slice = EVERY, columns: slice = EVERY) -> Tensor:
        """x: integer-valued float64 (B, C_in, H, W) within ±ACTIVATION_LIMIT → the same (B, C_out, H, W); of it only
        the rows and columns asked for, which are of one step, and nothing else is computed."""
        side, ys, xs = self.weight.shape[2], range(*rows.indices(x.shape[2])), range(*columns.indices(x.shape[3]))
        step, height = ys.step, len(ys)
        if not height or not xs:
            return x.new_empty(x.shape[0], len(self.bias), height, len(xs))
        x = (F.pad(x, [1] * 4) if side == 3 else x)[:, :, ys.start : ys[-1] + side, xs.start : xs[-1] + side]
        at_once = max(1, STRIP_ELEMENTS // (x.shape[1] * side**2 * len(xs)))

        def strip(first: int) -> Tensor:
            taken = x[:, :, first * step : (first + at_once - 1) * step + side]
            return F.conv2d(taken, *self.exact, step).floor_()

        if at_once >= height:
            return strip(0)
        whole = x.new_empty(x.shape[0], len(self.bias), height, len(xs))
        for first in range(0, height, at_once):
            whole[:, :, first : first + at_once] = strip(first)
        return whole


Code = Callable[[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int32]], NDArray[np.int32]]
"""Takes a stage's flat positions in y, and index and mean there, all (n,); gives the symbols there, int32 (n,)."""


@dataclass(frozen=True)
class IntegerRefinement:
    """Exact twin of Refinement: told (3×3, of symbols and their magnitudes), given (1×1, of features), around (3×3, of
    the sum of both), out (1×1)."""

    told: IntegerLayer
    given: IntegerLayer
    around: IntegerLayer
    out: IntegerLayer

    def __post_init__(self) -> None:
        """Raises ValueError for layers that are of other sizes or do not follow on each other."""
        told, given, around, out = (getattr(self, part).weight.shape for part in PARTS)
        sides, widths = (told[2], given[2], around[2], out[2]), {told[0], given[0], *around[:2], out[1]}
        if sides != (3, 1, 3, 1) or len(widths) > 1:
            raise ValueError("the integer layers of a stage do not follow on each other")

    def hidden(self, symbols: NDArray[np.int32], features: Tensor) -> Tensor:
        """told + given at every position, integer-valued float64 (1, width, h, w), of symbols int32 (known, h, w), zero
        where not yet coded, and features (1, b, h, w)."""
        s = torch.from_numpy(symbols)[None].clamp(-TOLD_LIMIT, TOLD_LIMIT).double()
        return self.told(torch.cat((s.abs(), s), dim=1)).add_(self.given(features))

    def __call__(self, hidden: Tensor, rows: slice, columns: slice) -> Tensor:
        """Of `hidden` → (2·channels, …) at rows and columns, integer-valued float64."""
        h = self.around(hidden.clamp(0, ACTIVATION_LIMIT), rows, columns).add_(hidden[:, :, rows, columns])
        return self.out(h.clamp_(0, ACTIVATION_LIMIT))[0]


@dataclass(frozen=True)
class IntegerHyperSynthesis:
    """Exact twin of HyperSynthesis.

    layers: as many as its own. thresholds: int32 (255,), ascending, on the raw scale output: the index is the number
    of thresholds ≤ it. fraction_bits: f, of the last layer's output. stages, refinements: of y; a refinement for each
    stage but the first. slope: of the leaky ReLU in units of 1/2^16, 0 to 2^16. medians: int32 (C_z,) in units of
    1/2^f, added to the symbols of z, or None: then the first layer takes the symbols as they are.
    """

    layers: tuple[IntegerLayer, ...]
    thresholds: Tensor
    fraction_bits: int
    stages: tuple[Stage, ...]
    refinements: tuple[IntegerRefinement, ...]
    slope: int = 0
    medians: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for tensors of another kind, or layers that do not follow on each other."""
        t, m = self.thresholds, self.medians
        if m is not None and (m.dtype != torch.int32 or m.shape != self.layers[0].weight.shape[1:2]):
            raise ValueError("the medians must be one int32 for each channel of z")
        if not 0 <= self.slope <= 1 << SLOPE_BITS:
            raise ValueError("the slope must be a number from 0 to 1")
        if t.dtype != torch.int32 or t.shape != (255,) or not bool((t[1:] > t[:-1]).all()):
            raise ValueError("the scale thresholds must be 255 ascending int32")
        for a, b in zip(self.layers[:-1], self.layers[1:], strict=True):
            if len(a.bias) != 4 * b.weight.shape[1]:
                raise ValueError("the integer layers do not follow on each other")
        for stage, part in zip(self.stages[1:], self.refinements, strict=True):
            sizes = part.told.weight.shape[1], part.given.weight.shape[1], len(part.out.bias)
            if sizes != (2 * stage.known, self.layers[-1].weight.shape[1], 2 * (stage.stop - stage.start)):
                raise ValueError("the integer layers of a stage do not fit it")

    @property
    def offset(self) -> Tensor:
        """What the encoder takes off z before rounding: the medians as float32 (C_z, 1, 1), or 0."""
        if self.medians is None:
            return torch.zeros(())
        return self.medians[:, None, None] / 2.0**self.fraction_bits

    @classmethod
    def of(
        cls,
        floats: HyperSynthesis,
        scales: NDArray[np.float64],
        config: ModelConfig,
        medians: Tensor | None = None,
    ) -> IntegerHyperSynthesis:
        """Fixed-point layers for trained float ones; `scales` float64 (255,) are the thresholds of σ between indices,
        `medians` (C_z,) floats to be added to the symbols of z."""
        f = config.fraction_bits
        between = ACTIVATION_BITS if medians is None else f
        first = 0 if medians is None else f
        units = (first, *[between] * (len(floats.layers) - 1), f)
        layers = tuple(_fixed_point(c, *bits) for c, bits in zip(floats.layers, pairwise(units), strict=True))
        raw = np.log(scales) if floats.logarithmic else scales
        thresholds = torch.from_numpy(np.rint(raw * 2**f)).to(torch.int32)
        whole = None if medians is None else (medians.detach().double().cpu() * 2**f).round().to(torch.int32)
        a = ACTIVATION_BITS
        inner = dict(zip(PARTS, ((0, a), (between, a), (a, a), (a, f)), strict=True))
        refinements = tuple(
            IntegerRefinement(*(_fixed_point(getattr(told, part), *bits) for part, bits in inner.items()))
            for told in floats.refinements
        )
        slope = round(floats.slope * 2**SLOPE_BITS)
        return cls(layers, thresholds, f, tuple(floats.stages), refinements, slope, whole)

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: ModelConfig) -> IntegerHyperSynthesis:
        """From the tensors integer.* of a checkpoint. Raises KeyError for a missing one, ValueError for a wrong one."""
        def layer(name: str | int) -> IntegerLayer:
            return IntegerLayer(*(tensors[f"integer.{name}.{leaf}"] for leaf in LEAVES))

        layers, coded = tuple(layer(i) for i in range(3)), tuple(stages(config))
        refinements = tuple(
            IntegerRefinement(*(layer(f"stage{i}.{part}") for part in PARTS)) for i in range(1, len(coded))
        )
        widths = [config.stage_width] * len(refinements)
        inner = [len(part.told.bias) for part in refinements]
        if layers[0].weight.shape[1] != config.hyper or len(layers[-1].bias) != 2 * config.latent or inner != widths:
            raise ValueError("the integer layers do not fit the checkpoint's architecture")
        slope = tensors.get("integer.slope", torch.zeros((), dtype=torch.int32))
        if slope.dtype != torch.int32 or slope.ndim:
            raise ValueError("the slope must be one int32")
        medians = tensors.get("integer.medians")
        thresholds, f = tensors["integer.thresholds"], config.fraction_bits
        return cls(layers, thresholds, f, coded, refinements, int(slope), medians)

    def tensors(self) -> dict[str, Tensor]:
        """Under the names that `from_tensors` reads."""
        layers = {str(i): layer for i, layer in enumerate(self.layers)}
        for i, refinement in enumerate(self.refinements, 1):
            layers |= {f"stage{i}.{part}": getattr(refinement, part) for part in PARTS}
        named = {f"integer.{name}.{leaf}": getattr(layer, leaf) for name, layer in layers.items() for leaf in LEAVES}
        if self.slope:
            named["integer.slope"] = torch.tensor(self.slope, dtype=torch.int32)
        if self.medians is not None:
            named["integer.medians"] = self.medians
        return {**named, "integer.thresholds": self.thresholds}

    @torch.inference_mode()
    def __call__(self, z: NDArray[np.int32], size: tuple[int, int], code: Code) -> Symbols:
        """The Symbols of z int32 (C_z, ⌈h/4⌉, ⌈w/4⌉) and of y of size (h, w), which `code` gives, or takes, stage by
        stage: encoder and decoder differ in it alone."""
        raw, mean, features = self.parameters(z[None], size)
        thresholds, limit = self.thresholds.double(), SYMBOL_LIMIT << self.fraction_bits
        shape = tuple(raw.shape[1:])
        y, means = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        index, order = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
        for i, stage in enumerate(self.stages):
            hidden = self.refinements[i - 1].hidden(y[: stage.known], features) if i else None
            for rows, columns in stage.grids:
                there = (stage.part, rows, columns)
                own_raw, own_mean = raw[0][there], mean[0][there]
                if hidden is not None:
                    more_raw, more_mean = self.refinements[i - 1](hidden, rows, columns).chunk(2)
                    own_raw, own_mean = own_raw + more_raw, own_mean + more_mean
                order[there], means[there] = i, own_mean.clamp(-limit, limit).numpy()
                index[there] = torch.searchsorted(thresholds, own_raw.contiguous(), right=True).numpy()
            flat = np.flatnonzero(order == i)
            y.reshape(-1)[flat] = code(flat, index.reshape(-1)[flat], means.reshape(-1)[flat])
        return Symbols(z=z, y=y, index=index, mean=means, stage=order)

    def parameters(self, z: NDArray[np.int32], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """z int32 (B, C_z, ⌈h/4⌉, ⌈w/4⌉) → before any refinement raw scale and mean (B, C_y, h, w), and the features
        (B, b, h, w), all integer-valued float64."""
        x = torch.from_numpy(z).double()
        if self.medians is not None:
            x = x * 2.0**self.fraction_bits + self.medians.double()[:, None, None]
            x = x.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)
        for layer in self.layers[:-1]:
            x = F.pixel_shuffle(self._activate(layer(x)), 2)
        raw, mean = self.layers[-1](x)[:, :, : size[0], : size[1]].chunk(2, dim=1)
        return raw, mean, x[:, :, : size[0], : size[1]]

    def _activate(self, x: Tensor) -> Tensor:
        """Saturation, then ReLU, leaky where there is a slope; in the memory of x."""
        x = x.clamp_(-ACTIVATION_LIMIT if self.slope else 0, ACTIVATION_LIMIT)
        return torch.maximum(x, (x * self.slope / 2**SLOPE_BITS + 0.5).floor_()) if self.slope else x


def _fixed_point(layer: nn.Conv2d, bits_in: int, bits_out: int) -> IntegerLayer:
    """The layer between activations in units of 1/2^bits_in and 1/2^bits_out, each output channel in the finest power
    of two that keeps its weights within ±2^14. Raises ValueError for weights that none keeps within int16."""
    w = layer.weight.detach().double().cpu()
    b = torch.zeros(len(w), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double().cpu()
    largest = w.abs().amax(dim=(1, 2, 3)).clamp(min=1e-9)
    bits = torch.floor(torch.log2(WEIGHT_LIMIT / largest)).clamp(max=30)
    bits = bits.clamp(min=bits_out - bits_in + 1)
    units = 2.0**bits
    whole = (w * units[:, None, None, None]).round()
    if whole.abs().max() >= 2**15:
        raise ValueError(f"a weight of {float(w.abs().max()):.3g} is too large for fixed point")
    return IntegerLayer(
        weight=whole.to(torch.int16),
        bias=(b * units * 2**bits_in).round().long(),
        shift=(bits + bits_in - bits_out).to(torch.uint8),
    )
