"""What the commands share: errors as one line, exit codes, and the groups of options that several of them take."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from cdcodec import files

Command = TypeVar("Command", bound=Callable[..., Any])


class Program(click.Group):
    """Errors go to stderr as one line; exit code 1, 2 for wrong usage, 130 when interrupted."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.Abort:
            code = 130
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
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--threads", metavar="N", type=click.IntRange(min=1), help="CPU threads. [default: all cores]"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of the networks; any of them decodes every file.",
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
        default=2**28,
        show_default=True,
        help="Refuse larger pictures.",
    ),
)
