"""Write the README's results from a committed summary: python -m cdcodec.lab.readme results/quality README.md"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from cdcodec import files
from cdcodec.errors import CdcodecError

BEGIN, END = "<!-- results -->", "<!-- /results -->"
RATES = (0.15, 0.3, 0.5)
TITLES = {"psnr": "PSNR in dB, more is better", "lpips-alex": "LPIPS (AlexNet), less is better"}


def section(folder: Path) -> str:
    """What each λ costs (summary.csv), the tables of equal-bpp.csv at some rates, and how they were made, as Markdown.

    Raises CdcodecError.
    """
    try:
        with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
            ours = [row for row in csv.DictReader(file) if row["ladder"] == "lambda"]
        with (folder / "equal-bpp.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if float(row["bpp"]) in RATES]
        return _written(folder, ours, rows, json.loads((folder / "run.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError) as error:
        raise CdcodecError(f"{folder} does not hold a whole report: {error}") from None


def _written(folder: Path, ours: list[dict[str, str]], rows: list[dict[str, str]], record: dict[str, Any]) -> str:
    blocks: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        blocks[row["measure"], row["reference"]].append(row)
    parts = _ladder(ours)
    parts += [part for (measure, reference), block in blocks.items() for part in _table(measure, reference, block)]
    machine = record["machine"]
    place = machine["gpu"] or machine["processor"]
    made = f"`{record['command']}`, {record['date']}, commit {record['commit']}, {place}"
    parts.append(
        f"Means over those of {len(record['images'])} pictures that both ladders reach (their number in brackets), "
        f"interpolated picture by picture over log bpp, from real files. Made by {made}; every number is in "
        f"[{folder.as_posix()}/equal-bpp.csv]({folder.as_posix()}/equal-bpp.csv)."
    )
    return "\n".join(parts) + "\n"


def replace(text: str, results: str) -> str:
    """A README with the lines between its two marks replaced. Raises CdcodecError when they are not there."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise CdcodecError(f"there are no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{results}{END}{after}"


def _ladder(rows: list[dict[str, str]]) -> list[str]:
    """A line for each λ: mean bpp and the measures of each curve."""
    curves, measures = list(dict.fromkeys(row["curve"] for row in rows)), [name for name in TITLES if name in rows[0]]
    of = {(row["rung"], row["curve"]): row for row in rows}
    lines = [f"**Each λ: mean bpp, {', '.join(TITLES[name].partition(',')[0] for name in measures)}**", ""]
    lines += [f"| λ | {' | '.join(curves)} |", "|---" * (1 + len(curves)) + "|"]
    for rung in dict.fromkeys(row["rung"] for row in rows):
        cells = [", ".join(_figure(name, of[rung, curve][name]) for name in ("bpp", *measures)) for curve in curves]
        lines.append(f"| {rung} | {' | '.join(cells)} |")
    return [*lines, ""]


def _table(measure: str, reference: str, block: list[dict[str, str]]) -> list[str]:
    peers = list(dict.fromkeys(row["curve"] for row in block))
    lines = [f"**{TITLES.get(measure, measure)}: peer / {reference}**", "", f"| bpp | {' | '.join(peers)} |"]
    lines.append("|---" * (len(peers) + 1) + "|")
    for bpp in dict.fromkeys(row["bpp"] for row in block):
        cells = [_cell(row) for peer in peers for row in block if (row["bpp"], row["curve"]) == (bpp, peer)]
        lines.append(f"| {bpp} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(row: dict[str, str]) -> str:
    if not row["theirs"]:
        return "–"
    theirs, ours = (_figure(row["measure"], row[whose]) for whose in ("theirs", "ours"))
    return f"{theirs} / {ours} ({row['images']})"


def _figure(measure: str, value: str) -> str:
    return f"{float(value):.{2 if measure == 'psnr' else 3}f}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("readme", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(folder: Path, readme: Path) -> None:
    """Write the results of the report in FOLDER into README."""
    try:
        text = replace(readme.read_text(encoding="utf-8"), section(folder))
        files.write(str(readme), text.encode(), force=True)
    except (CdcodecError, OSError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
