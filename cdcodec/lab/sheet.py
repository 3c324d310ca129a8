"""A contact sheet: crops of photographs, the original beside ours and its peers at equal bytes.

    python -m cdcodec.lab.sheet sheet.png face.png:900,300 water.png:40,700 --bpp 0.2
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdcodec import codec, image, target
from cdcodec.errors import CdcodecError
from cdcodec.lab.codecs import PEERS
from cdcodec.lab.demo import strip
from cdcodec.options import weights_option
from cdcodec.weights import Checkpoint, load_model

SIDE = 256


def peer_at(name: str, pixels: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], int]:
    """A peer's picture from its best file of at most `size` bytes (else its smallest one), and that file's bytes.
    Raises CdcodecError."""
    peer = PEERS.get(name)
    reason = f"one of {', '.join(PEERS)} is wanted" if peer is None else peer.missing()
    if peer is None or reason is not None:
        raise CdcodecError(f"{name}: {reason}")
    setting = peer.settings[0]
    low, high, best = 0, 100, peer.encode(pixels, 0, setting)
    while high - low > 1:
        middle = (low + high) // 2
        data = peer.encode(pixels, middle, setting)
        low, high, best = (middle, high, data) if len(data) <= size else (low, middle, best)
    return peer.decode(best, setting), len(best)


def row(
    spec: str, bpp: float, peers: tuple[str, ...], checkpoint: Checkpoint, *, rho: float | None, effort: int
) -> Image.Image:
    """One line of the sheet for "path:x,y": the crop whose upper left corner is (x, y). Raises CdcodecError."""
    path, _, corner = spec.rpartition(":")
    x, y = (int(number) for number in corner.split(","))
    pixels = image.read(path, strip=True).pixels
    window = (slice(y, y + SIDE), slice(x, x + SIDE))
    if pixels[window].shape[:2] != (SIDE, SIDE):
        raise CdcodecError(f"{path} has no {SIDE} × {SIDE} pixels at {x},{y}")
    wished, settings = target.Target("bpp", bpp), {"rho": rho}
    data = target.encode(pixels, checkpoint, wished, settings=settings, effort=effort).data
    ours = codec.decode(data, checkpoint, rho=rho)[0]
    columns = [(f"{Path(path).stem} {x},{y}", pixels)]
    for name in peers:
        decoded, size = peer_at(name, pixels, len(data))
        columns.append((f"{name} {size} bytes, {target.psnr(pixels, decoded):.2f} dB", decoded))
    columns.append((f"cdcodec {len(data)} bytes, {target.psnr(pixels, ours):.2f} dB", ours))
    return strip([(text, Image.fromarray(np.ascontiguousarray(picture[window]))) for text, picture in columns])


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("crops", metavar="PHOTO:X,Y...", nargs=-1, required=True)
@click.option("--bpp", type=float, default=0.2, show_default=True, help="Of our files; the peers get as many bytes.")
@click.option("--peers", default="avif,heic", show_default=True, help="Names, as of cdcodec eval.")
@click.option("--rho", type=click.FloatRange(0, 0.9), help="Of our files. [default: the checkpoint's]")
@click.option("--effort", type=click.IntRange(0, 1000), default=0, show_default=True, help="Of our encoding.")
@weights_option
def main(
    *, out: Path, crops: tuple[str, ...], bpp: float, peers: str, rho: float | None, effort: int, weights: Path | None
) -> None:
    """Draw OUT from crops of photographs, each with its upper left corner."""
    try:
        checkpoint = load_model(weights)
        rows = [row(spec, bpp, tuple(peers.split(",")), checkpoint, rho=rho, effort=effort) for spec in crops]
        sheet = Image.new("RGB", (rows[0].width, sum(line.height for line in rows)), "white")
        for i, line in enumerate(rows):
            sheet.paste(line, (0, i * line.height))
        sheet.save(out)
    except (CdcodecError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
