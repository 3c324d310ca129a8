"""h_a and h_s: the content latent's own side information, in floats; `integer.py` holds the exact twin of h_s."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.layers import conv3
from cdcodec.nets.transform import BlockTransform

SCALE_MIN, SCALE_MAX = 0.1, 256.0
"""Range of the Gaussian scales σ of y; the 256 coding tables are log-spaced over it."""

TOLD_LIMIT = 7
"""Symbols are told to later stages clamped to ± this."""

PHASES = {1: ((0, 1, 2, 3),), 2: ((0, 3), (1, 2)), 3: ((0,), (3,), (1, 2)), 4: ((0,), (3,), (1,), (2,))}
"""How a channel group is coded in 1 to 4 stages: which positions, by 2·(row mod 2) + column mod 2, each of them takes.
Two are a checkerboard."""


@dataclass(frozen=True)
class Stage:
    """What of y is coded at once: the channels start ≤ c < stop of a group, at the positions of some phases. Of the
    channels below `known`, and of no others, some are coded already."""

    group: int
    start: int
    stop: int
    phases: tuple[int, ...]
    known: int

    @property
    def part(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def grids(self) -> list[tuple[slice, slice]]:
        """The positions that are coded, as rows and columns of one or more regular grids."""
        if len(self.phases) == 4:
            return [(slice(None), slice(None))]
        return [(slice(phase // 2, None, 2), slice(phase % 2, None, 2)) for phase in self.phases]

    def places(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """The same as bool (height, width)."""
        place = torch.zeros(height, width, dtype=torch.bool, device=device)
        for rows, columns in self.grids:
            place[rows, columns] = True
        return place


def stages(config: ModelConfig) -> list[Stage]:
    """The stages y is coded in, in order: channel groups (Minnen & Singh 2020, arXiv 2007.08739), each cut in space
    (He et al. 2021, arXiv 2103.15306)."""
    found = []
    ends = (0, *config.groups, config.latent)
    for group, (start, stop, count) in enumerate(zip(ends[:-1], ends[1:], config.phases, strict=True)):
        found += [Stage(group, start, stop, phases, stop if i else start) for i, phases in enumerate(PHASES[count])]
    return found


class HyperAnalysis(nn.Module):
    """h_a: y (B, C_y, h, w), with its gain → z (B, C_z, ⌈h/4⌉, ⌈w/4⌉), float32. Sees no λ."""

    scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.hyper_widths[0]
        self.register_buffer("scale", 0.25 / BlockTransform(config).spread, persistent=False)
        self.layers = nn.ModuleList(
            (conv3(config.latent, inner), conv3(inner, inner, stride=2), conv3(inner, config.hyper, stride=2))
        )

    def forward(self, y: Tensor) -> Tensor:
        h = self.layers[0](y * self.scale)
        for layer in self.layers[1:]:
            h = layer(F.leaky_relu(h, 0.1))
        return h


class HyperSynthesis(nn.Module):
    """h_s: ẑ (B, C_z, ⌈h/4⌉, ⌈w/4⌉) and y (B, C_y, h, w) → log σ and μ of y, shaped like it, float32. Sees no λ.

        ẑ ─ conv ─ shuffle 2 ─ conv ─ shuffle 2 ─┬─ conv ──── + ─ [log σ, μ] of a stage ─ its symbols
                                                 └─ Refinement ──── symbols of the stages before

    The first stage has no Refinement: of y coded in a single one, nothing but the size matters. Only operations that
    have an exact twin in integers: convolutions, pixel-shuffle, (leaky) ReLU, clamping. The last convolution gives
    [log σ, μ] or [σ, μ].
    """

    layers: Any  # of Conv2d, which nn.ModuleList cannot say
    refinements: Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a, b = config.hyper_widths
        self.slope, self.logarithmic = config.hyper_slope, config.hyper_scale == "log"
        self.layers = nn.ModuleList(
            (conv3(config.hyper, 4 * a), conv3(a, 4 * b), conv3(b, 2 * config.latent, side=config.hyper_kernel))
        )
        self.stages, self.ends = stages(config), config.groups
        self.refinements = nn.ModuleList(Refinement(stage, config) for stage in self.stages[1:])

    def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h, (height, width) = z, y.shape[2:]
        for layer in self.layers[:-1]:
            h = F.leaky_relu(F.pixel_shuffle(layer(h), 2), self.slope)
        scale, mean = self.layers[-1](h)[:, :, :height, :width].chunk(2, dim=1)
        scale, mean = self._refined(scale, mean, y.detach(), h[:, :, :height, :width])
        log_scale = scale if self.logarithmic else scale.clamp(min=SCALE_MIN).log()
        return Bounded.apply(log_scale, math.log(SCALE_MIN), math.log(SCALE_MAX)), mean

    def _refined(self, scale: Tensor, mean: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and mean of all stages, each told the symbols of those before it; what is told carries no gradient."""
        told = torch.zeros_like(y)
        scales, means = (list(torch.tensor_split(t, self.ends, dim=1)) for t in (scale, mean))
        for stage, refinement in zip(self.stages, (None, *self.refinements), strict=True):
            place, group = stage.places(y.shape[2], y.shape[3], y.device), stage.group
            if refinement is not None:
                more_scale, more_mean = (refinement(told, h) * place).chunk(2, dim=1)
                scales[group], means[group] = scales[group] + more_scale, means[group] + more_mean
            with torch.no_grad():
                symbols = torch.where(place, torch.round(y[:, stage.part] - means[group]), told[:, stage.part])
                told = torch.cat((told[:, : stage.start], symbols, told[:, stage.stop :]), dim=1)
        return torch.cat(scales, dim=1), torch.cat(means, dim=1)


class Refinement(nn.Module):
    """What log σ and μ of a stage gain from the symbols before it: (B, 2·channels, h, w), nothing to begin with.

        [|s|, s] ─ told 3×3 ─ + ─┬────────────────────── + ─ ReLU ─ out 1×1 ─
        features ─ given 1×1 ─┘  └─ ReLU ─ around 3×3 ───┘

    In: symbols s (B, C_y, h, w), zero where not yet coded, and the features of the hyper-synthesis (B, b, h, w).
    """

    def __init__(self, stage: Stage, config: ModelConfig) -> None:
        super().__init__()
        self.known = stage.known
        self.told = conv3(2 * stage.known, config.stage_width)
        self.given = conv3(config.hyper_widths[1], config.stage_width, side=1)
        self.around = conv3(config.stage_width, config.stage_width, zero=True)
        self.out = conv3(config.stage_width, 2 * (stage.stop - stage.start), side=1, zero=True)

    def forward(self, symbols: Tensor, features: Tensor) -> Tensor:
        s = symbols[:, : self.known].clamp(-TOLD_LIMIT, TOLD_LIMIT)
        h = self.told(torch.cat((s.abs(), s), dim=1)) + self.given(features)
        more: Tensor = self.out(F.relu(h + self.around(F.relu(h))))
        return more


class Bounded(torch.autograd.Function):
    """clamp(x, low, high) whose gradient still reaches what lies outside, where following it leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high), (gradient,) = ctx.saved_tensors, ctx.bounds, gradients
        lost = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(lost, 0), None, None


def quantise(x: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """round(x - mean) + mean, with a straight-through gradient where one is asked for."""
    rounded = torch.round(x - mean) + mean
    return x + (rounded - x).detach() if x.requires_grad else rounded
