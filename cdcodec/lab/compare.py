"""Measures between two pictures, or between those pictures of two folders whose names agree but for the extension."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from cdcodec import image
from cdcodec.errors import CdcodecError
from cdcodec.lab.data import below, read_named
from cdcodec.lab.metrics import OF_SETS, Judge

Values = dict[str, float | None]


def pairs(a: Path, b: Path) -> list[tuple[str, Path, Path]]:
    """(name, path in a, path in b), sorted by name. Raises CdcodecError when the two do not fit, or a name is not
    one picture's."""
    if not a.is_dir() and not b.is_dir():
        return [(a.name, a, b)]
    if not (a.is_dir() and b.is_dir()):
        raise CdcodecError("compare takes two pictures or two folders, not one of each")
    found = [_stems(folder) for folder in (a, b)]
    common = sorted(found[0].keys() & found[1].keys())
    if not common:
        raise CdcodecError(f"no picture of {a} has the name of one of {b}")
    return [(name, found[0][name], found[1][name]) for name in common]


def unmatched(a: Path, b: Path) -> list[str]:
    """Names in one of two folders alone."""
    return sorted(_stems(a).keys() ^ _stems(b).keys()) if a.is_dir() and b.is_dir() else []


def compare(a: Path, b: Path, judge: Judge) -> Iterator[tuple[str, Values]]:
    """(name, measures) of each pair. Raises CdcodecError."""
    for name, one, two in pairs(a, b):
        first, second = read_named(one), read_named(two)
        if first.shape != second.shape:
            sizes = " and ".join(f"{p.shape[1]} x {p.shape[0]}" for p in (first, second))
            raise CdcodecError(f"{name}: the pictures have different sizes, {sizes}")
        yield name, judge(first, second)


def of_sets(a: Path, b: Path, names: Collection[str], folder: Path | None, device: str) -> Values:
    """FID and KID between all patches of two folders (or pictures), whatever their names; None below two patches."""
    from cdcodec.lab import fid

    extractor = fid.load_inception(folder, device)
    sides = []
    for side in (a, b):
        paths = sorted(_stems(side).values()) if side.is_dir() else [side]
        parts = [fid.features(extractor, read_named(path)) for path in paths]
        sides.append(parts)
    return fid.distances(sides[0], sides[1], [name for name in OF_SETS if name in names])


def _stems(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in below(folder, image.readable_extensions()):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise CdcodecError(f"{found[name]} and {path} differ in their extension alone: which of them is meant?")
        found[name] = path
    return found
