"""The commands below `cdcodec weights`. They import what they need themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cdcodec.options import FOLDER, finite, together, weights_option


@click.group("weights")
def weights_group() -> None:
    """Look at the weights that ship, or at others."""


@weights_group.command("list")
@weights_option
def weights_list(weights: Path | None) -> None:
    """List the checkpoints: preset, lambda, typical bpp, bytes, bitstream id, family (rho), licence."""
    from cdcodec import weights as store

    click.echo(f"{'preset':<12} {'lambda':>8} {'bpp':>7} {'bytes':>10}  {'bitstream':<10} {'rho':<6} licence")
    for entry in store.list_checkpoints(store.find_weights(weights)):
        bpp = "-" if entry.bpp is None else f"{entry.bpp:.3f}"
        line = f"{entry.preset:<12} {entry.lam:>8g} {bpp:>7} {entry.bytes:>10}  {entry.id:08x}"
        click.echo(f"{line:<52} {entry.rho:<6} {entry.licence}")


@weights_group.command("verify")
@weights_option
def weights_verify(weights: Path | None) -> int:
    """Check every file of the weights against its hash."""
    from cdcodec import weights as store

    results = store.verify(store.find_weights(weights))
    for path, verdict in results:
        click.echo(f"{click.format_filename(path)}: {verdict}")
    return 0 if all(verdict == "ok" for _, verdict in results) else 1


def _import_options(which: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return together(
        click.option("-o", "--output", "root", metavar="DIR", type=FOLDER,
                     help="Folder of weights to add to. [default: $CDCODEC_WEIGHTS, else those that ship]"),
        click.option("--lambda", "lam", metavar="FLOAT", type=click.FloatRange(min=0, min_open=True), callback=finite,
                     help=f"The lambda {which}"),
        click.option("--rho", metavar="FLOAT", type=click.FloatRange(0, 1), callback=finite,
                     help=f"The rho {which}"),
        click.option("--force", is_flag=True, help="Replace checkpoints that exist."),
    )  # fmt: skip


@weights_group.command("import")
@click.argument("paths", metavar="FILE.pt...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_import_options("it was trained with. [default: as its name says]")
def weights_import(paths: tuple[Path, ...], root: Path | None, **options: Any) -> None:
    """Turn checkpoints of the paper's authors into paper-x and paper-eps.

    --lambda and --rho say what a file was trained with, whatever its name says.
    """
    from cdcodec import weights as store
    from cdcodec.lab import authors

    folder = root or store.find_weights()
    for path in paths:
        _tell(authors.import_checkpoint(path, folder, **options))


@weights_group.command("fetch")
@click.argument("preset", type=click.Choice(["paper-x", "paper-eps"]))
@_import_options("of those to take. [default: all]")
def weights_fetch(preset: str, root: Path | None, **options: Any) -> None:
    """Download the checkpoints of the paper's authors from Hugging Face and import them.

    What is there already is passed over.
    """
    from cdcodec import weights as store
    from cdcodec.lab import authors

    for done in authors.fetch(preset, root or store.find_weights(), **options):
        _tell(done)


def _tell(done: Any) -> None:
    """One line on an imported checkpoint."""
    loss = f"integers lose {max(done.loss, 0):.3%} of the rate"
    click.echo(f"{click.format_filename(done.path)}: {done.preset}, lambda {done.lam:g}, rho {done.rho:g}; {loss}")
