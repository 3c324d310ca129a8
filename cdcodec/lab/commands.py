"""The commands eval and compare; cdcodec.cli adds them to the program. They import what they need themselves."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cdcodec.errors import CdcodecError
from cdcodec.options import FOLDER, device_options, extra, together, weights_option

REPORTS = ("bjontegaard", "matplotlib", "scipy")
PEERS = ("jpeg", "webp", "avif", "jxl", "heic", "heic-psnr")
MEASURES = ("psnr", "ms-ssim", "lpips-alex", "lpips-squeeze", "lpips-vgg", "dists", "fid", "kid")


def numbers(kind: type[int] | type[float], low: float = 0, high: float = float("inf")) -> Callable[..., Any]:
    """A click callback: "0.1,0.2" -> (0.1, 0.2), each within [low, high]."""

    def parse(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part) for part in (text or "").split(",") if part.strip())
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list of numbers like 1,4,17.") from None
        if not all(low <= value <= high and value < float("inf") for value in values):
            raise click.BadParameter(f"each number must lie between {low:g} and {high:g}.")
        return values

    return parse


def words(known: tuple[str, ...], *, none: bool = True) -> Callable[..., Any]:
    """A click callback: "a,b" -> ("a", "b"), each of the known words; "all", and "none" where that makes sense; None if
    not given."""

    def parse(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
        if text is None or text == "all" or (text == "none" and none):
            return {None: None, "all": known, "none": ()}[text]
        values = tuple(part.strip() for part in text.split(",") if part.strip())
        for value in values:
            if value not in known:
                raise click.BadParameter(f"{value!r} is not one of {', '.join(known)}.")
        return values

    return parse


metrics_options = together(
    click.option("--metrics", "measures", metavar="LIST", callback=words(MEASURES, none=False),
                 help=f"Some of {', '.join(MEASURES)}; or all."),
    click.option("--metric-weights", metavar="DIR", type=FOLDER,
                 help="Folder of the measures' networks. [default: $CDCODEC_METRIC_WEIGHTS, else torch's cache]"),
)  # fmt: skip


@click.command("eval")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", "out", metavar="DIR", type=click.Path(path_type=Path), default="evaluation",
              show_default=True, help="Folder of the report.")
@click.option("--preset", type=click.Choice(["standard", "quality", "figures"]), default="standard", show_default=True,
              help="What to measure: everything; the table of the README; or sweeps over steps, γ and ρ.")
@click.option("--model", "models", metavar="NAME", multiple=True,
              help="Preset of our weights, or none; may be given again.")
@click.option("--effort", metavar="N", type=click.IntRange(0, 1000),
              help="Of encoding, as of cdcodec encode. [default: 5 with --preset quality, else 0]")
@click.option("--lambda", "lambdas", metavar="LIST", callback=numbers(float), help="[default: the ladder]")
@click.option("--steps", metavar="LIST", callback=numbers(int), help="Decode with each of these, as in 0,1,4,17.")
@click.option("--gamma", "gammas", metavar="LIST", callback=numbers(float), help="Likewise.")
@click.option("--rho", "rhos", metavar="LIST", callback=numbers(float, 0, 0.9), help="Likewise; all combinations.")
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of the noise that decoding starts from.")
@click.option("--peers", metavar="LIST", callback=words(PEERS), help=f"Some of {', '.join(PEERS)}; all; or none.")
@click.option("--peer", "programs", metavar="TEMPLATE", multiple=True,
              help="An external codec: 'name@22,27,32=enc {in} {out} {q} ; dec {out} {rec}' (pictures as PNG).")
@metrics_options
@click.option("--anchor", metavar="NAME", help="Codec of the Bjøntegaard deltas. [default: avif]")
@click.option("--rates", metavar="LIST", callback=numbers(float, 0.001),
              help="bpp of the tables. [default: 0.12,0.15,0.2,0.3,0.4,0.5,0.6]")
@click.option("--pictures", "shown", metavar="N", type=click.IntRange(min=0), default=8, show_default=True,
              help="Pictures on the page.")
@click.option("--reuse", metavar="FILE", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Take from this results.jsonl what was measured there already, of peers for instance.")
@click.option("--resume", is_flag=True, help="Continue in the folder of the report.")
@click.option("--force", is_flag=True, help="Begin again in the folder of the report.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Take the first N pictures only.")
@click.option("--crop", metavar="N", type=click.IntRange(min=1),
              help="Take the middle N x N pixels of larger pictures only.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes side by side; times are then those of a busy machine.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@weights_option
@device_options
def eval_command(*, anchor: str | None, rates: tuple[float, ...], shown: int, reuse: tuple[Path, ...], resume: bool,
                 force: bool, quiet: bool, measures: tuple[str, ...] | None, **wanted: Any) -> int:  # fmt: skip
    """Measure ours and its peers on the pictures of a folder, from real files, and write a report.

    \b
    results.jsonl  one line per picture, codec and setting
    summary.csv, equal-bpp.csv, bd.csv, plots/
    index.html     everything on one page, with the pictures to compare
    """
    with extra("eval"):
        for package in REPORTS:  # they come last; that one is missing is said at the beginning
            importlib.import_module(package)
        from cdcodec.lab import evaluate, plan, report, results

        request = plan.Request(**wanted, measures=measures or ())
        if resume and force:
            raise click.UsageError("--resume and --force exclude each other")
        lines = request.out / "results.jsonl"
        if lines.exists() and not (resume or force):
            raise CdcodecError(f"{lines} exists already; --resume continues it, --force begins again")
        try:
            prepared = plan.prepare(request)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        report.check_anchor(prepared.plan, anchor)
        for line in (*prepared.missing, *prepared.broken):
            evaluate.say(f"cdcodec: note: {line}")
        request.out.mkdir(parents=True, exist_ok=True)
        known = [result for path in reuse for result in results.read(path)]
        if force:
            lines.unlink(missing_ok=True)
            shutil.rmtree(request.out / "features", ignore_errors=True)
        for path in reuse:
            report_of, features = path.with_name("features"), request.out / "features"
            if report_of.is_dir() and report_of.resolve() != features.resolve():
                shutil.copytree(report_of, features, dirs_exist_ok=True)
        facts = plan.record(prepared, shlex.join(["cdcodec", *sys.argv[1:]]))
        plan.write_record(request.out / "run.json", facts)
        outcome = evaluate.run(prepared.plan, known, quiet)
        text = report.write(prepared.plan, outcome, facts, report.Wishes(anchor, rates or report.Wishes.rates, shown))
        click.echo(text)
        click.echo(f"{len(outcome.results)} results, {request.out / 'index.html'}", err=True)
        return 1 if outcome.failures or prepared.broken else 0


@click.command("compare")
@click.argument("a", metavar="ORIGINAL", type=click.Path(path_type=Path, exists=True))
@click.argument("b", metavar="OTHER", type=click.Path(path_type=Path, exists=True))
@metrics_options
@click.option("--json", "as_json", is_flag=True, help="One JSON line per picture.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                 help="Where the networks run.")
def compare_command(
    *, a: Path, b: Path, measures: tuple[str, ...] | None, metric_weights: Path | None, as_json: bool, device: str
) -> int:
    """Measure a picture, or a folder of them, against the originals.

    Pictures of two folders are matched by their names without extension.
    """
    with extra("eval"):
        from cdcodec.device import pick_device
        from cdcodec.lab import compare, metrics, summary

        single = [name for name in MEASURES if name not in metrics.OF_SETS]
        names, reasons = metrics.usable(measures or single, metric_weights)
        for line in metrics.grouped(reasons):
            click.echo(f"cdcodec: note: {line}", err=True)
        if not names:
            raise CdcodecError("none of these measures can be had")
        for name in compare.unmatched(a, b):
            click.echo(f"cdcodec: note: {name} is in one of the folders only", err=True)
        place = pick_device(device).type
        rows = list(compare.compare(a, b, metrics.Judge(names, metric_weights, place)))
        sets = [name for name in names if name in metrics.OF_SETS]
        everything = compare.of_sets(a, b, sets, metric_weights, place) if sets else {}
        if as_json:
            for name, values in rows:
                click.echo(json.dumps({"picture": name, **values}))
            if everything:
                click.echo(json.dumps(everything))
            return 0
        if len(rows) > 1:
            single = [name for name in names if name not in metrics.OF_SETS]
            rows.append(("mean", {name: summary.mean(values[name] for _, values in rows) for name in single}))
        for name, values in rows:
            click.echo(f"{name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in values.items()))
        for key, value in everything.items():
            click.echo(f"{key} {_shown(value)}")
        return 0


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
