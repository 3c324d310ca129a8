"""A file of a wished size or quality: a search over λ with real files, four of them or, where none fits, five.

Size in bytes falls, and error rises, smoothly along λ; log bytes over log λ is nearly a straight line. So a first λ
comes from what is typical, and every file made corrects the curve in the place where it was made. A refined file takes
so long that the plain ones of its picture are made first, one for each λ of the ladder, and count as what is typical.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcodec import codec
from cdcodec.bits import container
from cdcodec.errors import TargetError
from cdcodec.weights import Checkpoint

TRIES = 4
"""Most files made for one picture, one more where none of them fits; but for plain ones that stand for refined ones."""

Measure = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]
"""measure(original, decoded), both uint8 (H, W, 3)."""

_GRID = 2001
_SIZE_SLACK, _PSNR_SLACK, _LPIPS_SLACK = 0.015, 0.08, 0.02
_CAUTION = 0.14
"""The last try aims lower by this part of the distance between the wish and the nearest file, at most by the slack."""
_SLOPES = {"size": -0.6, "psnr": -2.5, "lpips": 0.35}
"""Typical change of log bytes, of PSNR in dB and of log LPIPS, per unit of log λ."""
_TYPICAL = {"size": 0.4 / 8, "psnr": 29.0, "lpips": 0.2}
"""Bytes per pixel, PSNR and LPIPS that a picture may have in the middle of the ladder."""


@dataclass(frozen=True)
class Target:
    """What is wished of every picture.

    kind: "size" (bytes of the whole file, at most), "bpp" (likewise, bits per pixel), "psnr" (dB, at least) or
    "lpips" (at most). value: finite and above 0. measure: of LPIPS, which has none of its own. Else ValueError.
    """

    kind: str
    value: float
    measure: Measure | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("size", "bpp", "psnr", "lpips") or not 0 < self.value < math.inf:
            raise ValueError(f"a target is a size, bpp, psnr or lpips above 0, not {self.kind} {self.value}")
        if self.kind == "lpips" and self.measure is None:
            raise ValueError("a target of LPIPS needs the measure that takes it")


@dataclass(frozen=True)
class Hit:
    """The file found, its λ, how many of TRIES it took, its measure, if any, and what the user should know."""

    data: bytes
    lam: float
    encodes: int
    measured: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """At s, in log λ or its negative, the excess over what is wished is u; u <= 0 fits."""

    s: float
    u: float
    data: bytes
    lam: float
    value: float


def psnr(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB; at most 100, which stands for identical pictures."""
    difference = original.astype(np.int32) - decoded
    return min(100.0, 10 * math.log10(255**2 / max(float(np.mean(difference * difference)), 1e-9)))


def encode(
    pixels: NDArray[np.uint8],
    checkpoint: Checkpoint,
    target: Target,
    chunks: Mapping[str, bytes] | None = None,
    *,
    typical: Mapping[float, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    effort: int = 0,
) -> Hit:
    """Code a picture, uint8 (H, W, 3), for a target: never above a size or LPIPS, never below a PSNR.

    typical: bpp of an average picture by λ. settings: steps, gamma and rho of the decodes that are measured; the
    files that are tried are made for that rho, with that effort. Raises TargetError when the target is out of reach,
    and what `codec.encode` raises.
    """
    chunks, settings = dict(chunks or {}), dict(settings or {})
    rho = settings.get("rho")

    def code(lam: float) -> bytes:
        return codec.encode(pixels, checkpoint, lam, chunks, effort=effort, rho=rho)

    if target.kind in ("size", "bpp"):
        area = pixels.shape[0] * pixels.shape[1]
        limit = int(target.value if target.kind == "size" else target.value * area / 8)
        if effort:
            plain = {lam: len(codec.encode(pixels, checkpoint, lam, rho=rho)) for lam in checkpoint.ladder}
            typical = {lam: 8 * (size - container.HEADER.size) / area for lam, size in plain.items()}
        return to_size(code, limit, checkpoint.ladder, overhead=_overhead(chunks), area=area, typical=typical)
    measure = target.measure or psnr

    def judge(data: bytes) -> float:
        return measure(pixels, codec.decode(data, checkpoint, max_pixels=2**32, **settings)[0])

    return to_quality(code, judge, target, checkpoint.ladder)


def to_size(
    code: Callable[[float], bytes],
    limit: int,
    ladder: Sequence[float],
    *,
    overhead: int = container.HEADER.size,
    area: int = 0,
    typical: Mapping[float, float] | None = None,
) -> Hit:
    """The file code(λ) of at most `limit` bytes with the smallest λ found, 3 % below it or less where that can be.

    overhead: bytes that no λ changes; area: pixels, for the first guess. Raises TargetError.
    """
    if limit <= overhead:
        raise TargetError(
            f"a file of {limit} bytes is out of reach: the header and what is kept beside the picture take {overhead} "
            "(--strip leaves out metadata)"
        )
    curve = {math.log(lam): math.log(bpp * max(area, 1) / 8) for lam, bpp in (typical or {}).items() if bpp > 0}
    if len(curve) < 2 or any(a[1] <= b[1] for a, b in pairwise(sorted(curve.items()))):
        curve = _line("size", ladder, math.log(_TYPICAL["size"] * max(area, 1)))
    wished = math.log(limit - overhead)

    def attempt(s: float) -> Trial:
        lam = _lam(s, ladder)
        data = code(lam)
        return Trial(s, math.log(max(len(data) - overhead, 1)) - wished, data, lam, len(data))

    trials = search(attempt, _ends(ladder), {s: value - wished for s, value in curve.items()}, _SIZE_SLACK)
    best = _best(trials)
    if best is None:
        least = min(trials, key=lambda trial: trial.value)
        raise TargetError(
            f"{limit} bytes are out of reach: the smallest file of this picture has {len(least.data)}, at λ = "
            f"{least.lam:g}; make the picture smaller first"
        )
    notes: tuple[str, ...] = ()
    if best.s == _ends(ladder)[0] and best.u < -2 * _SIZE_SLACK:
        notes = (f"the best these weights can do, λ = {best.lam:g}, takes less than the {limit} bytes allowed",)
    return Hit(best.data, best.lam, len(trials), notes=notes)


def to_quality(
    code: Callable[[float], bytes], judge: Callable[[bytes], float], target: Target, ladder: Sequence[float]
) -> Hit:
    """The file code(λ) with the largest λ found whose judge(file) is good enough. Raises TargetError."""
    sign, scale = (-1.0, lambda value: value) if target.kind == "psnr" else (1.0, _log)
    slack = _PSNR_SLACK if target.kind == "psnr" else _LPIPS_SLACK
    wished = scale(target.value)

    def attempt(s: float) -> Trial:
        lam = _lam(-s, ladder)
        data = code(lam)
        value = judge(data)
        return Trial(s, sign * (scale(value) - wished), data, lam, value)

    curve = _line(target.kind, ladder, scale(_TYPICAL[target.kind]))
    low, high = _ends(ladder)
    trials = search(attempt, (-high, -low), {-s: sign * (value - wished) for s, value in curve.items()}, slack)
    best, name = _best(trials), {"psnr": "PSNR", "lpips": "LPIPS"}[target.kind]
    if best is None:
        closest = min(trials, key=lambda trial: trial.u)
        raise TargetError(
            f"{name} {target.value:g} is out of reach: this picture gets to {closest.value:.4g} at λ = {closest.lam:g} "
            "with these weights, steps, γ and ρ"
        )
    return Hit(best.data, best.lam, len(trials), best.value, (f"{name} {best.value:.4g}",))


def search(
    attempt: Callable[[float], Trial], ends: tuple[float, float], prior: Mapping[float, float], slack: float
) -> list[Trial]:
    """At most TRIES attempts at falling below u = 0 by no more than `slack`; u falls along s, about as prior(s) does.

    prior: u by s, joined by straight lines. Stops early where an attempt is near enough, or at an end of the range that
    leaves nothing to try; where nothing fits, that end is tried last, above the number.
    """
    low, high = ends
    grid = np.linspace(low, high, _GRID)
    known = sorted(prior.items())
    guess = _extended(grid, known)
    trials: list[Trial] = []
    while len(trials) < TRIES:
        residuals = sorted((trial.s, trial.u - float(_extended(np.array([trial.s]), known)[0])) for trial in trials)
        curve = guess + (_bent(grid, residuals) if residuals else 0.0)
        fitting = [trial.s for trial in trials if trial.u <= 0]
        hopeless = [trial.s for trial in trials if trial.u > 0]
        last = len(trials) == TRIES - 1
        margin = slack / 2 + (min(slack, _CAUTION * min(abs(trial.u) for trial in trials)) if last else 0.0)
        s = _crossing(grid, curve, -margin)
        s = min(max(s, max(hopeless, default=low)), min(fitting, default=high))  # within what is bracketed
        if any(abs(s - trial.s) < 1e-9 for trial in trials):  # the curve is no help here: halve what is bracketed
            s = (max(hopeless, default=low) + min(fitting, default=high)) / 2
        trials.append(attempt(s))
        if -slack <= trials[-1].u <= 0 or (s == low and trials[-1].u <= 0) or (s == high and trials[-1].u > 0):
            break
    if all(trial.u > 0 for trial in trials) and trials[-1].s != high:  # before saying that nothing fits
        trials.append(attempt(high))
    return trials


def _best(trials: Sequence[Trial]) -> Trial | None:
    return min((trial for trial in trials if trial.u <= 0), key=lambda trial: trial.s, default=None)


def _crossing(grid: NDArray[np.float64], curve: NDArray[np.float64], level: float) -> float:
    """Where the curve first comes down to the level; the far end where it never does."""
    below = np.flatnonzero(curve <= level)
    if below.size == 0:
        return float(grid[-1])
    i = int(below[0])
    if i == 0:
        return float(grid[0])
    part = (curve[i - 1] - level) / max(curve[i - 1] - curve[i], 1e-12)
    return float(grid[i - 1] + part * (grid[i] - grid[i - 1]))


def _extended(s: NDArray[np.float64], points: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Straight lines through the points, the outer ones continued."""
    xs, ys = (np.array(values) for values in zip(*points, strict=True))
    result = np.interp(s, xs, ys)
    if len(points) > 1:
        first, last = (_slope(points[i], points[i + 1]) for i in (0, len(points) - 2))
        result = result + np.minimum(s - xs[0], 0) * first + np.maximum(s - xs[-1], 0) * last
    return result


def _bent(s: NDArray[np.float64], points: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """As _extended, with the parabola instead where there are three points."""
    lines = _extended(s, points)
    if len(points) != 3:
        return lines
    (a, u), (b, v), (c, w) = points
    parabola = (
        u * (s - b) * (s - c) / ((a - b) * (a - c))
        + v * (s - a) * (s - c) / ((b - a) * (b - c))
        + w * (s - a) * (s - b) / ((c - a) * (c - b))
    )
    return np.where((s < a) | (s > c), lines, parabola)


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Of the line through two points (x, y) of different x."""
    return (b[1] - a[1]) / (b[0] - a[0])


def _line(kind: str, ladder: Sequence[float], middle: float) -> dict[float, float]:
    low, high = _ends(ladder)
    half = _SLOPES[kind] * max(high - low, 1e-6) / 2
    return {low: middle - half, max(high, low + 1e-6): middle + half}


def _ends(ladder: Sequence[float]) -> tuple[float, float]:
    return math.log(min(ladder)), math.log(max(ladder))


def _lam(s: float, ladder: Sequence[float]) -> float:
    return min(max(float(str(np.float32(math.exp(s)))), min(ladder)), max(ladder))


def _log(value: float) -> float:
    return math.log(max(value, 1e-6))


def _overhead(chunks: Mapping[str, bytes]) -> int:
    """Bytes of a file with these chunks but for its payload."""
    nothing = container.Header(0, 1.0, 1, 1, 0)
    return len(container.pack(nothing, chunks, b"-")) - 1


__all__ = ["TRIES", "Hit", "Measure", "Target", "encode", "psnr", "search", "to_quality", "to_size"]
