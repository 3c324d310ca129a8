"""Plots of an evaluation as SVG and PNG, readable without colour: every curve has its own marker and dash pattern."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcodec import files
from cdcodec.lab.metrics import MEASURES
from cdcodec.lab.results import Result
from cdcodec.lab.summary import OWN_CURVES

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#8a8a8a", "#e69f00", "#5b3fa0")
MARKERS = "osD^vPX*<>"
DASHES = ("-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (6, 2, 1, 2, 1, 2)))
SWEEPS = {
    "steps": "steps of the diffusion",
    "gamma": "γ, noise at the start",
    "rho": "ρ, from fidelity to looks, a file for each",
}
SIGNS = {"steps": "steps", "gamma": "γ", "rho": "ρ"}


@dataclass(frozen=True)
class Drawn:
    """A plot on disk: name.svg and name.png in a folder."""

    name: str
    title: str


def rates(rows: Sequence[Mapping[str, Any]], measures: Sequence[str], folder: Path) -> list[Drawn]:
    """Rate against each measure, one plot each and one with all: means over the pictures, a marker for each rung.

    rows: of `summary.means`. Of many curves of ours (a sweep) the first few are drawn.
    """
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["curve"]].append(row)
    own = [name for name, part in grouped.items() if part[0]["ladder"] == "lambda"]
    names = own[:OWN_CURVES] + [name for name in grouped if name not in own]
    taken = [m for m in measures if any(row.get(m) is not None for row in rows)]
    drawn = []
    for chosen in [[m] for m in taken] + ([taken] if len(taken) > 1 else []):
        with _Figure(len(chosen)) as figure:
            for axes, measure in zip(figure.axes, chosen, strict=False):
                for i, name in enumerate(names):
                    points = sorted((r["bpp"], r[measure]) for r in grouped[name] if r.get(measure) is not None)
                    if points:
                        axes.plot(*zip(*points, strict=True), label=name, **_style(i))
                axes.set(xscale="log", xlabel="bits per pixel ←", ylabel=MEASURES[measure].arrow)
                _plain_ticks(axes)
            title = MEASURES[chosen[0]].title if len(chosen) == 1 else "all measures"
            name = chosen[0] if len(chosen) == 1 else "all"
            drawn.append(figure.save(folder, f"rate-{name}", f"Rate against {title}"))
    return drawn


def sweeps(results: Sequence[Result], measures: Sequence[str], folder: Path) -> list[Drawn]:
    """Each measure over steps, γ and ρ where one of them was varied and the others stand at their commonest value."""
    own = [result for result in results if result.own]
    drawn = []
    for variable, title in SWEEPS.items():
        lines = _sweep(own, variable)
        taken = [m for m in measures if any(r.measures.get(m) is not None for r in own)]
        if not lines or not taken:
            continue
        with _Figure(len(taken)) as figure:
            for axes, measure in zip(figure.axes, taken, strict=False):
                for i, (name, groups) in enumerate(lines.items()):
                    xs = sorted(groups)
                    axes.plot(xs, [_mean(groups[x], measure) for x in xs], label=name, **_style(i))
                axes.set(xlabel=title, ylabel=MEASURES[measure].arrow)
                if variable == "steps":
                    axes.set_xscale("symlog", base=2, linthresh=1)
                    ticks = sorted({x for groups in lines.values() for x in groups})
                    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            drawn.append(figure.save(folder, f"sweep-{variable}", f"Quality over {title}"))
    return drawn


def strip(columns: Mapping[str, NDArray[np.uint8]], title: str, folder: Path, name: str) -> Drawn:
    """Crops of one picture side by side, each uint8 (H, W, 3) of one size, with its name above."""
    with _Figure(len(columns), wide=True) as figure:
        for axes, (label, pixels) in zip(figure.axes, columns.items(), strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(label, fontsize=8)
            axes.set_axis_off()
        return figure.save(folder, name, title, legend=False)


class _Figure:
    """Panels in a grid (`wide`: in one row), closed at the end of the with-block."""

    def __init__(self, panels: int, wide: bool = False) -> None:
        import matplotlib

        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "cdcodec"
        from matplotlib import pyplot as plt

        columns = panels if wide else min(panels, 3)
        rows = -(-panels // columns)
        size = (2.6 * columns, 2.9) if wide else (max(7, 5.4 * columns), 4.6 * rows)
        self.figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
        self.axes = list(grid.flat)
        for axes in self.axes[panels:]:
            axes.set_axis_off()
        self._close = plt.close

    def __enter__(self) -> _Figure:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self.figure)

    def save(self, folder: Path, name: str, title: str, legend: bool = True) -> Drawn:
        folder.mkdir(parents=True, exist_ok=True)
        for axes in self.axes:
            if legend and axes.has_data():
                axes.grid(alpha=0.3)
        if legend:
            self.axes[0].legend(fontsize=8, handlelength=4)
        self.figure.suptitle(title, fontsize=11)
        self.figure.tight_layout()
        for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 110})):
            drawn = io.BytesIO()
            self.figure.savefig(drawn, format=suffix, **options)
            files.write(str(folder / f"{name}.{suffix}"), drawn.getvalue(), force=True)
        return Drawn(name, title)


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5,
            "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.4}  # fmt: skip


def _plain_ticks(axes: Any) -> None:
    """Labels 0.1, 0.2, 0.5, 1 … on a logarithmic axis of bpp."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _sweep(own: Sequence[Result], variable: str) -> dict[str, dict[float, list[Result]]]:
    """Curve name -> value of the variable -> results: per codec and λ, at those other settings with most values."""
    groups: dict[tuple[Any, ...], dict[float, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in own:
        others = tuple(sorted((k, v) for k, v in result.setting.items() if k != variable))
        groups[result.codec, result.rung, others][result.setting[variable]].append(result)
    best: dict[tuple[str, float], tuple[Any, ...]] = {}
    for group, values in groups.items():
        rival = best.get(group[:2])
        if len(values) > 2 and (rival is None or len(values) > len(groups[rival])):
            best[group[:2]] = group
    return {f"{codec}, λ {rung:g}": groups[best[codec, rung]] for codec, rung in best}


def _mean(results: Sequence[Result], measure: str) -> float:
    values = [r.measures[measure] for r in results if r.measures.get(measure) is not None]
    return float(np.mean(np.array(values, dtype=float))) if values else float("nan")
