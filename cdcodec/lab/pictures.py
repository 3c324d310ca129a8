"""Pictures for a report: each codec at about equal bytes, and strips over a swept setting."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from cdcodec.errors import CdcodecError
from cdcodec.lab.codecs import Codec, Own, Setting
from cdcodec.lab.evaluate import Plan, Source, of_one_file, say
from cdcodec.lab.metrics import Judge
from cdcodec.lab.plots import SIGNS, SWEEPS, Drawn, strip
from cdcodec.lab.results import label
from cdcodec.lab.summary import OWN_CURVES, Curve

TARGETS = (0.15, 0.3)
LARGEST_SIDE = 768
STRIP_SIDE = 256
STRIPS = 3

Pixels = NDArray[np.uint8]


def choose(plan: Plan, count: int) -> list[Source]:
    """`count` pictures, evenly spaced over those of the plan."""
    places = np.linspace(0, len(plan.sources) - 1, min(count, len(plan.sources))).round()
    return [plan.sources[int(i)] for i in places]


def comparison(plan: Plan, curves: Mapping[str, Curve], source: Source, judge: Judge) -> dict[str, Any]:
    """One picture for the page: the original and, near each target rate, ours and each peer at our number of bytes."""
    pixels = source.pixels()
    window = _centre(pixels.shape[0], pixels.shape[1])
    shots: list[dict[str, Any]] = []
    for target in TARGETS:
        bpp = target
        for codec in sorted(plan.codecs, key=lambda codec: not isinstance(codec, Own)):
            try:
                for made in _shots(codec, curves, source.name, pixels, bpp):
                    decoded = made.pop("pixels")
                    bpp = made["bpp"] if isinstance(codec, Own) else bpp
                    made |= {"measures": judge(pixels, decoded), "uri": uri(decoded[window])}
                    shots.append({"target": target, **made})
            except Exception as error:  # as in the evaluation: the other codecs go on
                say(f"cdcodec: error: {source.name}: {codec.name} for the page: {error}")
    crop = pixels[window]
    return {"name": source.name, "width": crop.shape[1], "height": crop.shape[0], "original": uri(crop), "shots": shots}


def _shots(codec: Codec, curves: Mapping[str, Curve], name: str, pixels: Pixels, bpp: float) -> list[dict[str, Any]]:
    """Facts and pixels of a codec, for its first settings, at the rung that should come nearest to a rate."""
    shots = []
    for settings in of_one_file(codec.settings[:OWN_CURVES]):
        curve = curves.get(label(codec.name, settings[0]))
        if curve is None or name not in curve.pictures:
            continue
        rung = rung_for(curve, name, bpp)
        data = codec.encode(pixels, rung, settings[0])
        facts = {"rung": rung, "bytes": len(data), "bpp": 8 * len(data) / (pixels.shape[0] * pixels.shape[1])}
        shots += [{"label": label(codec.name, s), **facts, "pixels": codec.decode(data, s)} for s in settings]
    return shots


def rung_for(curve: Curve, name: str, bpp: float) -> float:
    """The λ, or quality in whole numbers, at which a picture should take a rate, by its ladder; clamped to its ends."""
    results = curve.pictures[name]
    at, rates = np.log(bpp), [np.log(r.bpp) for r in results]
    if curve.own:
        lam = float(np.exp(np.interp(at, rates, [np.log(r.rung) for r in results])))
        return min(max(lam, min(r.rung for r in results)), max(r.rung for r in results))
    return float(np.rint(np.interp(at, rates, [r.rung for r in results])))


def strips(plan: Plan, folder: Path) -> list[Drawn]:
    """For each swept setting of ours a few pictures, the original and all values side by side, at a middle λ."""
    drawn: list[Drawn] = []
    for codec in (codec for codec in plan.codecs if isinstance(codec, Own)):
        swept = {variable: _swept(codec.settings, variable) for variable in SWEEPS}
        if not any(swept.values()):
            continue
        rung = codec.rungs[len(codec.rungs) // 2]
        for number, source in enumerate(choose(plan, STRIPS), 1):
            pixels = source.pixels()
            window = _liveliest(pixels)
            groups = of_one_file([setting for settings in swept.values() for setting in settings])
            try:
                coded = {same[0]["rho"]: codec.encode(pixels, rung, same[0]) for same in groups}
            except CdcodecError as error:
                say(f"cdcodec: error: {source.name}: {codec.name} for the strips: {error}")
                continue
            for variable, settings in swept.items():
                columns = {"original": pixels[window]}
                for setting in settings:
                    data = coded[setting["rho"]]
                    bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
                    shown = codec.decode(data, setting)[window]
                    columns[f"{SIGNS[variable]} {setting[variable]:g}, {bpp:.3f} bpp"] = shown
                if settings:
                    title = f"{codec.name}, λ {rung:g}: {source.name} over {SWEEPS[variable]}"
                    drawn.append(strip(columns, title, folder, f"strip-{codec.name}-{variable}-{number}"))
    return drawn


def _swept(settings: Sequence[Setting], variable: str) -> list[Setting]:
    """The settings that differ in one variable alone, at least three, by its value; empty when there are none."""
    groups: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
    for setting in settings:
        groups[tuple(sorted((k, v) for k, v in setting.items() if k != variable))].append(setting)
    largest = max(groups.values(), key=len)
    return sorted(largest, key=lambda setting: setting[variable]) if len(largest) > 2 else []


def uri(pixels: Pixels) -> str:
    """A picture as a data URI that browsers show: AVIF 4:4:4 of high quality, else lossless WebP."""
    kind, options = ("avif", {"quality": 90, "subsampling": "4:4:4", "speed": 8})
    if not features.check("avif"):
        kind, options = "webp", {"lossless": True}
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind.upper(), **options)
    return data_uri(buffer.getvalue(), f"image/{kind}")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _centre(height: int, width: int) -> tuple[slice, slice]:
    top, left = max(0, height - LARGEST_SIDE) // 2, max(0, width - LARGEST_SIDE) // 2
    return slice(top, top + LARGEST_SIDE), slice(left, left + LARGEST_SIDE)


def _liveliest(pixels: Pixels) -> tuple[slice, slice]:
    """The square window whose green channel varies most, on a coarse grid."""
    height, width = pixels.shape[:2]
    windows = [
        (slice(top, top + STRIP_SIDE), slice(left, left + STRIP_SIDE))
        for top in range(0, max(1, height - STRIP_SIDE + 1), STRIP_SIDE // 2)
        for left in range(0, max(1, width - STRIP_SIDE + 1), STRIP_SIDE // 2)
    ]
    return max(windows, key=lambda window: float(pixels[window][..., 1].std()))
