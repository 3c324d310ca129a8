"""What the commands share: errors as one line, exit codes, and the groups of options that several of them take."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from cdcodec import files
from cdcodec.config import DEFAULT_LAMBDA, MAX_GAMMA, MAX_PIXELS, SMALLEST_TILE
from cdcodec.errors import CdcodecError

EXTRAS = {
    "train": {"compressai", "lpips", "matplotlib", "torchvision"},
    "eval": {"bjontegaard", "DISTS_pytorch", "lpips", "matplotlib", "pytorch_msssim", "scipy", "torch_fidelity",
             "torchvision"},
}  # fmt: skip
"""What the extras of pyproject.toml bring that a command may lack."""

Command = TypeVar("Command", bound=Callable[..., Any])


class Program(click.Group):
    """Errors go to stderr as one line; exit code 1, 2 for wrong usage, 130 when interrupted."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        if sys.stderr is None:  # where it was closed; what is printed to None goes to standard output
            sys.stderr = open(os.devnull, "w", encoding="utf-8")
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="replace")  # not every encoding has a λ
        try:
            code = super().main(*args, **kwargs)
        except click.Abort:
            code = 130
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            where = getattr(error, "ctx", None)
            hint = f" (see {where.command_path} --help)" if where else ""
            click.echo(f"cdcodec: error: {' '.join(error.format_message().split())}{hint}", err=True)
            code = error.exit_code
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except files.PlanError as error:
            raise click.UsageError(str(error)) from error
        except Exception as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"cdcodec: error: {files.one_line(error)}", err=True)
            return 1


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback: refuses NaN and infinity, which pass a FloatRange."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def parse_size(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """A click callback: 30000, 30k or 1.5M as bytes; k is 1000, M a million, KiB and MiB are powers of two."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmg])(i)?)?b?\s*", text, re.IGNORECASE | re.ASCII)
    unit = (1024 if match[3] else 1000) ** " kmg".index((match[2] or " ").lower()) if match else 0
    size = float(match[1]) * unit if match else 0.0
    if not 1 <= size < 2**53:
        raise click.BadParameter(f"{text!r} is no size like 30000, 30k or 1.5M.")
    return int(size)


def parse_tile(ctx: click.Context, parameter: click.Parameter, text: str) -> int | str:
    """A click callback: auto, off or the side of a tile in pixels."""
    if text in ("auto", "off"):
        return text
    if not re.fullmatch(r"\d{3,5}", text, re.ASCII) or int(text) < SMALLEST_TILE:
        raise click.BadParameter(f"{text!r} is neither auto nor off nor a number from {SMALLEST_TILE} to 99999.")
    return int(text)


def rate_wished(options: dict[str, Any]) -> tuple[str, Any]:
    """The one of --lambda, --quality and the targets that was given, and its value, taken out of `options`.

    ("lam", DEFAULT_LAMBDA) when none was. Raises UsageError for several.
    """
    names = {"lam": "--lambda", "quality": "--quality"} | {f"target_{kind}": f"--target-{kind}" for kind in TARGETS}
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(names[name] for name in given)} exclude each other")
    return next(iter(given.items()), ("lam", DEFAULT_LAMBDA))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Says which extra to install where one of its packages is missing. Raises CdcodecError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS[name]:
            raise
        raise CdcodecError(f"{error.name} is not installed: pip install 'cdcodec[{name}]'") from error


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed by --help in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


inputs_and_output = click.argument(
    "paths", metavar="IN [OUT] | IN... -o DIR", nargs=-1, required=True, type=click.Path(path_type=str, allow_dash=True)
)

FOLDER = click.Path(path_type=Path, file_okay=False)

weights_option = click.option(
    "--weights",
    metavar="DIR",
    type=FOLDER,
    help="Folder of weights. [default: $CDCODEC_WEIGHTS, else those that ship]",
)

device_options = together(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                 help="Where the networks run."),
    click.option("--threads", metavar="N", type=click.IntRange(min=1), help="CPU threads. [default: all cores]"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of the networks; any of them decodes every file.",
    ),
)

tile_option = click.option(
    "--tile",
    metavar="auto|N|off",
    default="auto",
    show_default=True,
    callback=parse_tile,
    help=f"Work in tiles of N pixels a side, at least {SMALLEST_TILE}, for less memory; auto: large pictures only. "
    "With paper-x and paper-eps tiles are an approximation, and may show.",
)

compile_option = click.option(
    "--compile",
    is_flag=True,
    help="Compile the denoiser first (on a CPU by a C++ compiler); pays off for many pictures of one size.",
)

TARGETS = ("bpp", "size", "psnr", "lpips")

_POSITIVE = click.FloatRange(0, 1e9, min_open=True)

rate_options = together(
    click.option(
        "--lambda",
        "lam",
        metavar="FLOAT",
        type=_POSITIVE,
        callback=finite,
        help=f"A larger lambda means a smaller file. [default: {DEFAULT_LAMBDA}]",
    ),
    click.option(
        "--quality",
        type=click.IntRange(1, 8),
        help="Instead of --lambda: one of the eight the weights were trained for; 8 is best.",
    ),
    click.option(
        "--target-size", metavar="SIZE", callback=parse_size, help="Search lambda for a file of at most 30k, 1.5M, ..."
    ),
    click.option("--target-bpp", metavar="FLOAT", type=_POSITIVE, callback=finite, help="Likewise, bits per pixel."),
    click.option(
        "--target-psnr",
        metavar="DB",
        type=_POSITIVE,
        callback=finite,
        help="Search lambda for the smallest file that decodes to this PSNR, with --steps, --gamma and --rho.",
    ),
    click.option(
        "--target-lpips",
        metavar="FLOAT",
        type=_POSITIVE,
        callback=finite,
        help="Likewise, LPIPS (AlexNet); needs the extra train and the network's weights.",
    ),
    click.option(
        "--metric-weights",
        metavar="DIR",
        type=FOLDER,
        help="Where the weights of LPIPS lie. [default: $CDCODEC_METRIC_WEIGHTS, else torch's cache]",
    ),
)
"""`rate_wished` says which of the first six was given."""

painting_options = together(
    click.option(
        "--steps",
        metavar="N",
        type=click.IntRange(min=0),
        help="Steps of the diffusion; 0 is a fast preview. [default: the checkpoint's own, 1 for ours]",
    ),
    click.option(
        "--gamma",
        metavar="FLOAT",
        type=click.FloatRange(0, MAX_GAMMA),
        callback=finite,
        help="Noise to start from; 0.8 gives texture. [default: the checkpoint's own]",
    ),
    click.option(
        "--rho",
        metavar="FLOAT",
        type=click.FloatRange(0, 0.9),
        callback=finite,
        help="From 0, fidelity, to 0.9, looks. [default: the checkpoint's own]",
    ),
)

batch_options = together(
    click.option(
        "-o",
        "--output",
        "folder",
        metavar="DIR",
        type=click.Path(path_type=str),
        help="Write all outputs into this folder, keeping the tree of input folders.",
    ),
    click.option("--skip-existing", is_flag=True, help="Leave inputs alone whose output exists."),
    click.option("--force", is_flag=True, help="Replace outputs that exist."),
    click.option("--json", "as_json", is_flag=True, help="One JSON line per file on standard output."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    click.option(
        "--max-pixels",
        metavar="N",
        type=click.IntRange(min=1),
        default=MAX_PIXELS,
        show_default=True,
        help="Refuse larger pictures.",
    ),
)
