"""What the results say: means per setting, values at equal bpp, Bjøntegaard deltas; as CSV files and as text.

Curves are compared picture by picture, over log bpp, only where both ladders reach; the number of pictures is always
given. Between the rungs, values are interpolated by piecewise cubics (PCHIP), in the deltas too.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdcodec import files
from cdcodec.errors import CdcodecError
from cdcodec.lab import fid
from cdcodec.lab.evaluate import features_path
from cdcodec.lab.metrics import MEASURES, OF_SETS
from cdcodec.lab.results import Result

OWN_CURVES = 4
"""Of many curves of ours (a sweep), the first few are compared with peers, drawn against the rate, and shown."""
RATES = (0.12, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Curve:
    """One codec at one setting over its ladder. pictures: image -> its results by rising bpp."""

    name: str
    own: bool
    pictures: Mapping[str, Sequence[Result]]

    def points(self, image: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """(log bpp, rising strictly; the measure there), float64, of one picture; empty where it was not taken."""
        taken: dict[float, float] = {}
        for result in self.pictures.get(image, ()):
            value = result.measures.get(measure)
            if value is not None:
                taken.setdefault(float(np.log(result.bpp)), value)
        return np.array(list(taken)), np.array(list(taken.values()))

    def at(self, image: str, measure: str, bpp: float) -> float | None:
        """The measure of one picture at a rate; None where the ladder does not reach."""
        from scipy.interpolate import PchipInterpolator

        rate, value = self.points(image, measure)
        if len(rate) < 2 or not rate[0] <= np.log(bpp) <= rate[-1]:
            return None
        return float(PchipInterpolator(rate, value)(np.log(bpp)))


@dataclass(frozen=True)
class Equal:
    """Two curves at equal bpp. theirs, ours: means over those `images` pictures that both ladders reach."""

    measure: str
    bpp: float
    curve: str
    reference: str
    theirs: float | None
    ours: float | None
    images: int


@dataclass(frozen=True)
class Delta:
    """Bjøntegaard deltas of a curve against an anchor, means over `images` pictures.

    rate: change of the file's size at equal quality, in percent. difference: change of the measure at equal size.
    """

    measure: str
    curve: str
    anchor: str
    rate: float | None
    difference: float | None
    images: int


def curves(results: Iterable[Result]) -> dict[str, Curve]:
    """By name, in the order of the results."""
    grouped: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    own = {}
    for result in results:
        grouped[result.curve][result.image].append(result)
        own[result.curve] = result.own
    return {
        name: Curve(name, own[name], {image: sorted(rows, key=lambda r: r.bpp) for image, rows in pictures.items()})
        for name, pictures in grouped.items()
    }


def equal(reference: Curve, other: Curve, measure: str, bpp: float) -> Equal:
    """Compare at one rate, over the pictures that both reach."""
    pairs = [(other.at(image, measure, bpp), reference.at(image, measure, bpp)) for image in other.pictures]
    both = np.array([pair for pair in pairs if None not in pair], dtype=float)
    theirs, ours = (float(m) for m in both.mean(axis=0)) if len(both) else (None, None)
    return Equal(measure, bpp, other.name, reference.name, theirs, ours, len(both))


def delta(anchor: Curve, curve: Curve, measure: str) -> Delta:
    """Bjøntegaard deltas (piecewise cubic), picture by picture; pictures whose curves do not overlap are left out."""
    higher = MEASURES[measure].higher
    found = []
    for image in curve.pictures:
        one, two = (_front(*c.points(image, measure), higher) for c in (anchor, curve))
        values = _bjontegaard(one, two)
        if values is not None:
            found.append(values)
    rate, difference = (float(m) for m in np.mean(found, axis=0)) if found else (None, None)
    if difference is not None and not higher:
        difference = -difference
    return Delta(measure, curve.name, anchor.name, rate, difference, len(found))


def _front(rate: np.ndarray, value: np.ndarray, higher: bool) -> tuple[np.ndarray, np.ndarray]:
    """(log bpp, quality), both rising: points that spend more and gain nothing are left out. Less is made more."""
    quality = value if higher else -value
    keep = [i for i in range(len(rate)) if i == 0 or quality[i] > quality[:i].max()]
    return rate[keep], quality[keep]


def _bjontegaard(
    anchor: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float] | None:
    """(delta of the rate in percent, of the quality), None where the curves do not overlap both ways."""
    import bjontegaard

    if min(len(anchor[0]), len(test[0])) < 2:
        return None
    one, two = ((np.exp(rate), quality) for rate, quality in (anchor, test))
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of curves that do not overlap, and gives NaN
        values = bjontegaard.bd_rate(*one, *two, **options), bjontegaard.bd_psnr(*one, *two, **options)
    return (float(values[0]), float(values[1])) if np.isfinite(values).all() else None


def means(results: Sequence[Result], measures: Sequence[str], features: Path) -> list[dict[str, Any]]:
    """One row per curve and rung: means over the pictures, their number, FID and KID over all their patches."""
    grouped: dict[tuple[str, float], list[Result]] = defaultdict(list)
    for result in results:
        grouped[result.curve, result.rung].append(result)
    rows = []
    for (name, rung), group in grouped.items():
        first = group[0]
        row: dict[str, Any] = {"curve": name, "codec": first.codec, "ladder": first.ladder, "rung": rung}
        row["images"] = len(group)
        row |= {field: mean(getattr(r, field) for r in group) for field in
                ("bytes", "overhead", "bpp", "encode_seconds", "decode_seconds")}  # fmt: skip
        row["peak_mb"] = max((r.peak_mb for r in group if r.peak_mb is not None), default=None)
        row |= {name: mean(r.measures.get(name) for r in group) for name in measures if name not in OF_SETS}
        rows.append(row | _of_sets(group, [name for name in measures if name in OF_SETS], features))
    return rows


def _of_sets(group: Sequence[Result], names: Sequence[str], features: Path) -> dict[str, float | None]:
    """FID and KID between all patches of the originals and of the decoded pictures; None below two patches."""
    if not names:
        return {}
    sides = []
    for keys in ([r.digest for r in group], [r.key for r in group]):
        paths = [features_path(features, key) for key in keys]
        sides.append([np.load(path) for path in paths if path.exists()])
    found = fid.distances(sides[0], sides[1], names)
    return {name: None if value is None else round(value, 6) for name, value in found.items()}


def comparisons(
    all_curves: Mapping[str, Curve], measures: Sequence[str], rates: Sequence[float], anchor: str
) -> tuple[list[Equal], list[Delta]]:
    """Ours (or the anchor, if none is ours) against every peer at equal bpp; every curve against the anchor."""
    single = [measure for measure in measures if measure not in OF_SETS]
    base = all_curves[chosen(all_curves, anchor)]
    references = [curve for curve in all_curves.values() if curve.own][:OWN_CURVES] or [base]
    peers = [curve for curve in all_curves.values() if not curve.own]
    equals = [
        equal(reference, peer, measure, bpp)
        for measure in single for reference in references for bpp in rates for peer in peers
        if peer is not reference
    ]  # fmt: skip
    deltas = [delta(base, curve, measure) for measure in single for curve in all_curves.values() if curve is not base]
    return equals, deltas


def chosen(curves: Collection[str], name: str) -> str:
    """The curve of this name, or the first one of the codec of this name. Raises CdcodecError."""
    for curve in curves:
        if name in (curve, curve.split(",")[0]):
            return curve
    raise CdcodecError(f"there is no codec {name} to compare with; there are {'; '.join(curves)}")


def table(equals: Sequence[Equal]) -> str:
    """The comparison at equal bpp as text, a block for each measure and curve of ours, a column for each peer."""
    blocks: dict[tuple[str, str], dict[float, dict[str, Equal]]] = defaultdict(lambda: defaultdict(dict))
    for row in equals:
        blocks[row.measure, row.reference][row.bpp][row.curve] = row
    lines = []
    for (measure, reference), rows in blocks.items():
        peers = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines += [f"{MEASURES[measure].arrow} at equal bpp: peer | {reference} (pictures that both reach)"]
        lines.append("   bpp" + "".join(f"{name:>24}" for name in peers))
        for bpp, cells in rows.items():
            if any(cell.images for cell in cells.values()):
                lines.append(f"{bpp:6.2f}" + "".join(f"{_cell(cells[name]):>24}" for name in peers))
        lines.append("")
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys; floats with six significant digits, None as an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    files.write(str(path), text.getvalue().encode(), force=True)


def _cell(row: Equal) -> str:
    if row.theirs is None or row.ours is None:
        return "-"
    digits = 2 if row.measure == "psnr" else 4
    return f"{row.theirs:.{digits}f} | {row.ours:.{digits}f} ({row.images})"


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are defined; None when there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
