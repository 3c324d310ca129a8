"""The report of an evaluation: summary.csv, equal-bpp.csv, bd.csv, plots, and one self-contained index.html."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cdcodec import files
from cdcodec.lab import pictures, plots, summary
from cdcodec.lab.evaluate import Outcome, Plan
from cdcodec.lab.metrics import MEASURES, OF_SETS, Judge
from cdcodec.lab.plots import Drawn
from cdcodec.lab.results import label


@dataclasses.dataclass(frozen=True)
class Wishes:
    """anchor: of the Bjøntegaard deltas (None: avif, else the first peer). rates: bpp of the tables. shown: pictures
    on the page."""

    anchor: str | None = None
    rates: tuple[float, ...] = summary.RATES
    shown: int = 8


def check_anchor(plan: Plan, name: str | None) -> None:
    """That there will be a curve of this name; before anything is measured. Raises CdcodecError."""
    if name is not None:
        summary.chosen([label(codec.name, setting) for codec in plan.codecs for setting in codec.settings], name)


def write(plan: Plan, outcome: Outcome, record: Mapping[str, Any], wishes: Wishes) -> str:
    """Everything beside results.jsonl; returns the comparison at equal bpp as text. Raises CdcodecError."""
    out, measures = plan.out, plan.judging.measures
    all_curves = summary.curves(outcome.results)
    anchor = summary.chosen(all_curves, wishes.anchor or _usual_anchor(all_curves))
    rows = summary.means(outcome.results, measures, plan.judging.features)
    equals, deltas = summary.comparisons(all_curves, measures, wishes.rates, anchor)
    summary.write_csv(out / "summary.csv", rows)
    summary.write_csv(out / "equal-bpp.csv", [dataclasses.asdict(row) for row in equals])
    summary.write_csv(out / "bd.csv", [dataclasses.asdict(row) for row in deltas])
    drawn = plots.rates(rows, measures, out / "plots")
    drawn += plots.sweeps(outcome.results, [m for m in measures if m not in OF_SETS], out / "plots")
    judge = Judge(measures, plan.judging.weights, plan.judging.device)
    shown = [pictures.comparison(plan, all_curves, s, judge) for s in pictures.choose(plan, wishes.shown)]
    strips = pictures.strips(plan, out / "plots")
    page = {
        "record": record,
        "failures": outcome.failures,
        "measures": {name: {"title": MEASURES[name].title, "higher": MEASURES[name].higher} for name in measures},
        "anchor": anchor,
        "rows": rows,
        "equal": [dataclasses.asdict(row) for row in equals],
        "deltas": [dataclasses.asdict(row) for row in deltas],
        "pictures": shown,
        "plots": _embed(drawn, out / "plots", "svg"),
        "strips": _embed(strips, out / "plots", "png"),
    }
    files.write(str(out / "index.html"), render(page).encode(), force=True)
    text = summary.table(equals)
    files.write(str(out / "equal-bpp.txt"), text.encode(), force=True)
    return text


def render(page: Mapping[str, Any]) -> str:
    """The template with the page's data inside; nothing in the data can end the script element that holds it."""
    template = resources.files("cdcodec.lab").joinpath("templates/report.html").read_text(encoding="utf-8")
    text = json.dumps(page, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return template.replace("@DATA@", text)


def _embed(drawn: Sequence[Drawn], folder: Path, suffix: str) -> list[dict[str, str]]:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[suffix]
    files = [(plot, (folder / f"{plot.name}.{suffix}").read_bytes()) for plot in drawn]
    return [{"title": plot.title, "uri": pictures.data_uri(data, kind)} for plot, data in files]


def _usual_anchor(all_curves: Mapping[str, summary.Curve]) -> str:
    peers = [curve.name for curve in all_curves.values() if not curve.own]
    return "avif" if "avif" in peers else (peers or list(all_curves) or ["?"])[0]
