"""The command line. Commands import what they need themselves, so that --help and info start in no time."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Collection
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import click

from cdcodec import __version__, files
from cdcodec.config import DEFAULT_LAMBDA, MAX_PIXELS
from cdcodec.device import keep_freed_memory
from cdcodec.errors import TargetError, TrainingError, WeightsError
from cdcodec.lab.commands import compare_command, eval_command
from cdcodec.options import (
    FOLDER,
    Program,
    batch_options,
    compile_option,
    device_options,
    extra,
    finite,
    inputs_and_output,
    painting_options,
    rate_options,
    rate_wished,
    tile_option,
    weights_option,
)
from cdcodec.weights_commands import weights_group


@click.group(cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cdcodec", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback with every error.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """An image codec with a conditional-diffusion decoder.

    \b
    cdcodec encode photo.png photo.cdc
    cdcodec decode photo.cdc decoded.png
    cdcodec encode photos/ -o coded/
    """
    ctx.obj = debug
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command()
@inputs_and_output
@rate_options
@painting_options
@click.option("--model", "preset", metavar="NAME", default="compact-x", show_default=True,
              help="Which weights; see cdcodec weights list.")
@click.option("--effort", metavar="N", type=click.IntRange(0, 1000), default=0, show_default=True,
              help="Refine the latent in so many steps: 10 take a tenth off LPIPS at equal bytes, for many times the "
              "seconds.")
@click.option("--strip", is_flag=True, help="Leave out EXIF, XMP and, after converting to sRGB, the ICC profile.")
@weights_option
@device_options
@tile_option
@batch_options
@click.pass_obj
def encode(
    debug: bool, /, *, paths: tuple[str, ...], preset: str, effort: int, strip: bool, max_pixels: int, **options: Any
) -> int:
    """Code pictures as .cdc files.

    OUT ends in .cdc, or is - for standard output; without OUT and -o the output lies beside its input. Folders are
    searched for pictures. A file is made for being decoded at --rho, which also chooses among imported weights; it
    decodes at any. --steps and --gamma matter to --target-psnr and --target-lpips only.
    """
    from cdcodec import batch, image

    name, value = rate_wished(options)
    jobs = _plan(paths, options, ".cdc", image.readable_extensions(), {".cdc"})
    load = _loader(options)

    @cache
    def choose() -> tuple[Any, float]:
        # Only of imported checkpoints one λ is one model; of a ladder this chooses nothing.
        model = load(preset=preset, lam=value if name == "lam" else None, rho=options["rho"])
        if wish:
            return model, DEFAULT_LAMBDA  # which the search does not look at
        chosen = _rung(model.ladder, value) if name == "quality" else value
        model.check_lambda(chosen)
        return model, chosen

    settings = {name: options[name] for name in ("steps", "gamma", "rho")}
    wish = _search(name.removeprefix("target_"), value, preset, options) if name.startswith("target") else {}
    task = batch.Encode(choose, max_pixels, strip, settings=settings, effort=effort, **wish)
    return batch.run(jobs, task, _batch_options(options, debug))


@main.command()
@inputs_and_output
@painting_options
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="The same seed gives the same picture.")
@click.option("--format", "format", metavar="NAME", help="png, jpg, webp, tiff, ... [default: by OUT, else png]")
@click.option("--model", "preset", metavar="NAME",
              help="Which denoiser, of those that know the file. [default: that of the weights it was coded with]")
@click.option("--depth", type=click.Choice(["original", "8"]), default="8", show_default=True,
              help="Bits per channel to write; original brings 16-bit pictures back, as PNG.")
@weights_option
@device_options
@tile_option
@compile_option
@batch_options
@click.pass_obj
def decode(debug: bool, /, *, paths: tuple[str, ...], format: str | None, depth: str, preset: str | None,
           steps: int | None, seed: int, gamma: float | None, rho: float | None, max_pixels: int,
           **options: Any) -> int:  # fmt: skip
    """Paint pictures from .cdc files.

    OUT ends in a picture's extension, or is - for standard output; without OUT and -o the output lies beside its
    input. Folders are searched for .cdc files.
    """
    from cdcodec import batch, image

    writable = image.writable_extensions()
    suffix = f".{(format or 'png').lower().lstrip('.')}"
    if suffix not in writable:
        raise click.UsageError(f"--format {format} names no format that can be written here")
    jobs = _plan(paths, options, suffix, {".cdc"}, writable)
    load = lru_cache(maxsize=2)(_loader(options))
    settings = {"steps": steps, "gamma": gamma, "rho": rho, "seed": seed}
    task = batch.Decode(lambda checkpoint: load(checkpoint=checkpoint, preset=preset), settings,
                        writable[suffix] if format else None, depth == "original", max_pixels)  # fmt: skip
    return batch.run(jobs, task, _batch_options(options, debug))


@main.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=str, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="One JSON line per file.")
def info(paths: tuple[str, ...], as_json: bool) -> int:
    """Show what .cdc files say about themselves, and check them for damage."""

    from cdcodec import examine

    def show(path: str) -> None:
        facts = examine.facts(path)
        if as_json:
            click.echo(json.dumps(facts))
            return
        facts["chunks"] = ", ".join(f"{name} {size}" for name, size in facts["chunks"].items()) or "none"
        for name, value in facts.items():
            click.echo(click.format_filename(value) if name == "input" else f"  {name:<13} {value}")

    return _each(paths, show)


@main.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=str, allow_dash=True))
@click.option("--max-pixels", metavar="N", type=click.IntRange(min=1), default=MAX_PIXELS, show_default=True,
              help="Refuse larger pictures.")
@click.option("-q", "--quiet", is_flag=True, help="Name damaged files only.")
@weights_option
def verify(paths: tuple[str, ...], max_pixels: int, quiet: bool, weights: Path | None) -> int:
    """Check .cdc files wholly, down to the last symbol, without painting their pictures."""
    from cdcodec import examine
    from cdcodec import weights as store

    load = lru_cache(maxsize=2)(lambda checkpoint: store.load_model(weights, checkpoint=checkpoint, device="cpu"))

    def check(path: str) -> None:
        examine.verify(path, load, max_pixels)
        if not quiet:
            click.echo(f"{click.format_filename(path)}: sound")

    return _each(paths, check)


@main.command()
@click.option("--images", metavar="DIR", required=True, type=FOLDER, help="Photographs to train on.")
@click.option("--out", "run", metavar="DIR", required=True, type=FOLDER, help="Where state, log and pictures go.")
@click.option("--recipe", metavar="NAME", help="One that comes with cdcodec, or a TOML file. [default: compact-x]")
@click.option("--scale", metavar="FLOAT", type=click.FloatRange(0, 1000, min_open=True), callback=finite,
              help="Take this share of the recipe's steps, or more than all of them.")
@click.option("--batch", metavar="N", type=click.IntRange(min=4), help="Crops a step, a multiple of 4.")
@click.option("--resume", is_flag=True, help="Continue the run in --out at its next step, by its own recipe.")
@click.option("--start", metavar="DIR", type=FOLDER, help="Begin with the weights in this folder.")
@click.option("--valid", "validation", metavar="DIR", type=FOLDER, help="Photographs to watch the progress on.")
@click.option("--metric-weights", metavar="DIR", type=FOLDER,
              help="Folder of LPIPS' networks. [default: $CDCODEC_METRIC_WEIGHTS, else torch's cache]")
@click.option("--minutes", metavar="FLOAT", type=click.FloatRange(min=0), callback=finite, help="Stop after these.")
@click.option("--no-graph", is_flag=True, help="On a GPU, do not make a step one CUDA graph.")
@device_options
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def train(*, images: Path, run: Path, recipe: str | None, scale: float | None, batch: int | None, resume: bool,
          start: Path | None, threads: int | None, no_graph: bool, **options: Any) -> None:  # fmt: skip
    """Train a model on a folder of photographs. Several processes: torchrun -m cdcodec -- train ..."""
    if resume and (recipe or start or scale or batch):
        raise click.UsageError(
            "--resume goes by the run's own recipe and weights; leave out --recipe, --start, --scale and --batch"
        )
    with extra("train"):
        from cdcodec import weights as store
        from cdcodec.lab import critic, state
        from cdcodec.lab import recipe as recipes
        from cdcodec.lab import train as trainer

        _set_threads(threads)
        if not resume and (run / state.STATE).exists():
            raise TrainingError(f"{run} holds a training run already; --resume continues it")
        chosen = None if resume else recipes.load_recipe(recipe or "compact-x").resized(scale or 1.0, batch)
        whole = chosen and (chosen.model.shares or chosen.preset)
        if chosen and chosen.model.shares and not start:
            raise TrainingError(f"{chosen.preset} is trained for the files of {whole}: name its weights by --start")
        if whole and start:
            options["start"] = store.load_tensors(start, preset=whole)[0] | critic.beside(start / whole)
            options["trained"] = int(store.about(start, preset=whole).get("steps", 0))
        keep_freed_memory()
        trainer.train(images, run, chosen, graph=not no_graph, **options)


@main.command()
@click.argument("run", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--valid", "photographs", metavar="DIR", type=FOLDER, help="Photographs to measure typical bpp on.")
@click.option("--force", is_flag=True, help="Replace checkpoints of this preset that are there.")
def export(run: Path, out: Path, photographs: Path | None, force: bool) -> None:
    """Make checkpoints below the folder OUT from the training run in the folder RUN."""
    with extra("train"):
        from cdcodec.lab.export import export_run

        for path in export_run(run, out, photographs, force=force):
            click.echo(f"{click.format_filename(path)} {path.stat().st_size}")


for command in (eval_command, compare_command, weights_group):
    main.add_command(command)


def _each(paths: tuple[str, ...], look: Callable[[str], None]) -> int:
    """look(path) for every path, those that fail named; the exit code."""
    code = 0
    for path in paths:
        try:
            look(path)
        except (click.ClickException, BrokenPipeError):
            raise
        except Exception as error:  # also a fault of ours must not keep the others from being looked at
            if click.get_current_context().obj:
                traceback.print_exception(error)
            click.echo(f"cdcodec: error: {files.shown(path)}: {files.one_line(error)}", err=True)
            code = 1
    return code


def _search(kind: str, value: float, preset: str, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of batch.Encode that make it search for a target. Raises WeightsError, CdcodecError."""
    from cdcodec import target
    from cdcodec import weights as store

    rungs = store.list_checkpoints(store.find_weights(options["weights"]))
    typical = {rung.lam: rung.bpp for rung in rungs if rung.preset == preset and rung.bpp}
    measure = _lpips(options["metric_weights"], options["device"]) if kind == "lpips" else None
    return {"target": target.Target(kind, value, measure), "typical": typical}


def _lpips(folder: Path | None, device: str) -> Callable[[Any, Any], float]:
    """measure(original, decoded) by AlexNet. Raises WeightsError, CdcodecError where something for it is missing."""
    with extra("train"):
        from cdcodec.device import pick_device
        from cdcodec.lab import metrics

        _, reasons = metrics.usable(["lpips-alex"], folder)
        for reason in reasons.values():
            raise WeightsError(reason)
        judge = metrics.Judge(["lpips-alex"], folder, pick_device(device).type)

    def measure(original: Any, decoded: Any) -> float:
        value = judge(original, decoded)["lpips-alex"]
        if value is None:
            raise TargetError("this picture is too small for LPIPS")
        return value

    return measure


def _plan(
    paths: tuple[str, ...], options: dict[str, Any], suffix: str, sources: Collection[str], targets: Collection[str]
) -> list[files.Job]:
    """The jobs. What can be refused before a model is loaded is refused here."""
    folder: str | None = options["folder"]
    if options["force"] and options["skip_existing"]:
        raise click.UsageError("--force and --skip-existing exclude each other")
    jobs = files.plan(paths, folder, suffix=suffix, source_suffixes=sources, target_suffixes=targets)
    if options["as_json"] and any(job.target == files.STANDARD for job in jobs):
        raise click.UsageError("--json and the output - both want standard output")
    files.prepare(jobs, create=folder is not None)
    return jobs


def _batch_options(options: dict[str, Any], debug: bool) -> Any:
    from cdcodec import batch

    return batch.Options(options["force"], options["skip_existing"], options["quiet"], options["as_json"], debug)


def _loader(options: dict[str, Any]) -> Callable[..., Any]:
    """load(preset=…) or load(checkpoint=…) with the weights, threads and the rest of the options."""
    running = {name: options[name] for name in ("device", "precision", "tile", "compile") if name in options}

    def load(**which: Any) -> Any:
        from cdcodec import weights as store

        _set_threads(options["threads"])
        keep_freed_memory()
        return store.load_model(store.find_weights(options["weights"]), **running, **which)

    return load


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _rung(ladder: tuple[float, ...], quality: int) -> float:
    """The λ of a quality: 8 is the smallest λ of the ladder."""
    if quality <= 8 - len(ladder):
        raise WeightsError(f"these weights have {len(ladder)} qualities, {9 - len(ladder)} to 8")
    return sorted(ladder)[8 - quality]
