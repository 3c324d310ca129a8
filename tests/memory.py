"""Peak memory and time of encode and decode of a large picture: PYTHONPATH=. python tests/memory.py --size 5440 3648

The picture is a photograph that comes with scikit-image, enlarged. Each command runs as a process of its own, whose
peak resident memory is printed; --piece says how far tiles are from the whole. Without --weights the weights are seeded
and untrained, of the architecture of --model. Not on Windows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import authors
import conftest
import numpy as np
from PIL import Image
from skimage import data

from cdcodec import codec
from cdcodec.config import PRESETS
from cdcodec.weights import load_model

Image.MAX_IMAGE_PIXELS = None


def enlarged(height: int, width: int) -> Image.Image:
    """scikit-image's coffee, cropped to the shape and enlarged to the size."""
    picture = Image.fromarray(data.coffee())
    side = min(picture.width / width, picture.height / height)
    crop = picture.crop((0, 0, round(width * side), round(height * side)))
    return crop.resize((width, height), Image.Resampling.LANCZOS)


def seeded_weights(root: Path, preset: str) -> Path:
    root.mkdir()
    if preset == "compact-x":
        return conftest.write_tiny_weights(root, PRESETS[preset])
    from cdcodec.lab.authors import import_checkpoint

    import_checkpoint(authors.write_file(root, preset, 64), root)
    return root


def run(*words: str) -> None:
    """Prints seconds and peak memory of `cdcodec words…`."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "cdcodec", *words])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"cdcodec {' '.join(words)} failed")
    peak = usage.ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    print(f"{words[0]:<8}{time.perf_counter() - begin:8.1f} s   {peak:6.2f} GiB at most", flush=True)


def difference(piece: np.ndarray, weights: Path | None, options: argparse.Namespace) -> None:
    """Of a piece of the picture: symbols that tiles change, and pixels of the same file."""
    load = {"preset": options.model, "device": options.device, "precision": options.precision}
    models = {tile: load_model(weights, tile=tile, **load) for tile in ("off", options.piece_tile)}
    lam = models["off"].ladder[len(models["off"].ladder) // 2]
    files = {tile: codec.encode(piece, model, lam) for tile, model in models.items()}
    settings = {"steps": options.steps, "gamma": options.gamma}
    whole, cut = (codec.decode(files["off"], model, **settings)[0].astype(int) for model in models.values())
    symbols = [codec.read_symbols(file, models["off"])[2] for file in files.values()]
    apart = {name: int((getattr(symbols[0], name) != getattr(symbols[1], name)).sum()) for name in ("z", "y")}
    print(f"{piece.shape[1]}×{piece.shape[0]}: of {symbols[0].y.size} symbols y tiles change {apart['y']}, of z "
          f"{apart['z']}; {len(files['off'])} and {len(files[options.piece_tile])} bytes; pixels differ by at most "
          f"{np.abs(whole - cut).max()}/255, {np.abs(whole - cut).mean():.4f} on average")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["compact-x", "paper-x", "paper-eps"], default="compact-x")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1536), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--gamma", type=float, default=0.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--piece", type=int, default=0, metavar="N", help="compare tiles with the whole on N×N pixels")
    parser.add_argument("--piece-tile", type=int, default=1024, metavar="N", help="… with tiles of this side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, source = Path(folder), Path(folder) / "in.png"
        weights = options.weights or seeded_weights(root / "weights", options.model)
        picture = enlarged(*options.size)
        picture.save(source, compress_level=1)
        print(f"{options.model}, {picture.width}×{picture.height}, tile {options.tile}, {options.steps} steps")
        places = ["--weights", str(weights), "--device", options.device, "--precision", options.precision]
        places += ["--tile", options.tile, "--quiet"]
        lam = ["--lambda", "0.0512"] if options.model == "paper-x" else []
        coded, out = str(root / "x.cdc"), str(root / "out.png")
        run("encode", str(source), coded, "--model", options.model, *lam, *places)
        run("decode", coded, out, "--steps", str(options.steps), "--gamma", str(options.gamma), *places)
        with Image.open(out) as decoded:
            assert decoded.size == picture.size, decoded.size
        if options.piece:
            difference(np.asarray(picture)[: options.piece, : options.piece], weights, options)


if __name__ == "__main__":
    main()
