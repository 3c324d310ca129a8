"""`make demo`: one photograph at three λ, a table of what they cost, and a strip beside JPEG at equal bytes."""

from __future__ import annotations

import io
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from cdcodec import codec, image
from cdcodec.errors import CdcodecError
from cdcodec.target import psnr
from cdcodec.weights import load_model

LAMBDAS = (0.0032, 0.0128, 0.0512)
CAPTION = 18


def jpeg_at(picture: Image.Image, size: int) -> tuple[bytes, int]:
    """The best optimised progressive JPEG of at most `size` bytes, else the smallest one; and its quality."""
    best, chosen = b"", 0
    for quality in range(1, 96):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if best and len(buffer.getvalue()) > size:
            break
        best, chosen = buffer.getvalue(), quality
    return best, chosen


def strip(columns: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of equal size side by side, each with its caption above."""
    width, height = columns[0][1].size
    sheet = Image.new("RGB", (width * len(columns), height + CAPTION), "white")
    for i, (text, picture) in enumerate(columns):
        sheet.paste(picture, (i * width, CAPTION))
        ImageDraw.Draw(sheet).text((i * width + 4, 2), text, fill="black")
    return sheet


@click.command()
@click.argument("photo", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("demo"), show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="Weights folder.")
def main(photo: Path | None, out: Path, weights: Path | None) -> None:
    """Code PHOTO (default: a cup of coffee from scikit-image) at three lambda."""
    try:
        run(photo, out, weights)
    except (CdcodecError, OSError) as error:
        raise click.ClickException(str(error)) from None


def run(photo: Path | None, out: Path, weights: Path | None) -> None:
    """Write the pictures below `out` and print the table. Raises CdcodecError."""
    if photo is None:
        from skimage import data

        pixels = np.ascontiguousarray(data.coffee())
    else:
        pixels = image.read(photo, strip=True).pixels
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, original = load_model(weights), Image.fromarray(pixels)
    codec.decode(codec.encode(pixels, checkpoint, 0.0128), checkpoint)  # the first run warms up
    print(f"{'lambda':>8} {'bytes':>8} {'bpp':>6} {'PSNR':>6} {'encode':>8} {'decode':>8}   JPEG of equal bytes, PSNR")
    for lam in LAMBDAS:
        begin = time.perf_counter()
        data_ = codec.encode(pixels, checkpoint, lam)
        middle = time.perf_counter()
        decoded, _ = codec.decode(data_, checkpoint)
        end = time.perf_counter()
        (out / f"lambda-{lam:g}.cdc").write_bytes(data_)
        jpeg, quality = jpeg_at(original, len(data_))
        peer = Image.open(io.BytesIO(jpeg)).convert("RGB")
        columns = [
            (f"original {pixels.shape[1]}x{pixels.shape[0]}", original),
            (f"cdcodec {len(data_)} bytes", Image.fromarray(decoded)),
            (f"JPEG quality {quality}, {len(jpeg)} bytes", peer),
        ]
        strip(columns).save(out / f"lambda-{lam:g}.png")
        bpp = 8 * len(data_) / (pixels.shape[0] * pixels.shape[1])
        print(f"{lam:>8g} {len(data_):>8} {bpp:>6.3f} {psnr(pixels, decoded):>6.2f} {middle - begin:>7.2f}s "
              f"{end - middle:>7.2f}s   {len(jpeg)} bytes, {psnr(pixels, np.asarray(peer)):.2f}")
    print(f"pictures side by side: {out}/lambda-*.png")


if __name__ == "__main__":
    main()
