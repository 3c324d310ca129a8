"""Golden files: .cdc files of the shipped weights whose symbols never change, and the pictures they are painted as.

    python tests/golden.py                  make them anew from weights/, into tests/vectors/golden
    python tests/golden.py --check          replay them, as tests/test_golden.py does

They belong to the weights named in golden.json, and are made anew when other weights ship. Between two such times they
must replay on every machine: the symbols exactly, the pixels within the RMSE and peak error that golden.json states.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdcodec import codec, image
from cdcodec import weights as store
from cdcodec.weights import Checkpoint

FOLDER = Path(__file__).with_name("vectors") / "golden"
WEIGHTS = Path(__file__).parents[1] / "weights"
BOUNDS = {"float32": {"rmse": 0.2, "peak": 2}, "bfloat16": {"rmse": 0.6, "peak": 6}}
"""By how much each precision may differ, on any machine, from float32 here, in levels of 8 bits."""


def pictures() -> dict[str, tuple[Image.Image, float]]:
    """Name -> a piece of a scikit-image picture, and the λ it is coded with: RGB, grey, and RGBA between two rungs."""
    from skimage import data

    astronaut = Image.fromarray(data.astronaut()[10:71, 180:277])
    coffee = Image.fromarray(data.coffee()[120:200, 200:312]).convert("L")
    chelsea = Image.fromarray(data.chelsea()[60:124, 120:216])
    chelsea.putalpha(Image.linear_gradient("L").resize(chelsea.size))
    return {"astronaut": (astronaut, 0.0024), "coffee": (coffee, 0.0768), "chelsea": (chelsea, 0.009)}


def identity(root: Path) -> dict[str, str]:
    """What of the weights decides symbols (bitstream) and pixels (tensors), in hexadecimal."""
    rung = store.find(root)
    return {"bitstream": f"{rung.id:08x}", "tensors": store.about(root)["tensors"]}


def make(root: Path, folder: Path) -> None:
    """Write NAME.cdc and NAME.png, what float32 paints by the checkpoint's own settings, and golden.json."""
    import torch

    model = store.load_model(root, device="cpu", precision="float32")
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    checks = {}
    for name, (picture, lam) in pictures().items():
        read = image.from_pil(picture)
        data = codec.encode(read.pixels, model, lam, read.chunks)
        (folder / f"{name}.cdc").write_bytes(data)
        symbols = codec.read_symbols(data, model)[2]
        checks[name] = f"{symbols.check(config.fraction_bits):08x}"
        Image.fromarray(codec.decode(data, model)[0]).save(folder / f"{name}.png", optimize=True)
    facts = {
        **identity(root),
        "symbol_checks": checks,
        "settings": {"steps": config.steps, "gamma": config.gamma, "rho": config.rho, "seed": 0},
        "bounds": BOUNDS,
        "torch": torch.__version__,
    }
    (folder / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")


def facts(folder: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((folder / "golden.json").read_text())
    return known


def replay_symbols(folder: Path, model: Checkpoint) -> None:
    """AssertionError, or the error of the decoder, where a file gives other symbols than when it was made."""
    for name, check in facts(folder)["symbol_checks"].items():
        header, _, symbols = codec.read_symbols((folder / f"{name}.cdc").read_bytes(), model)
        found = f"{symbols.check(model.config.fraction_bits):08x}"
        assert (found, f"{header.symbol_check:08x}") == (check, check), f"{name}: other symbols than when it was made"


def replay_pixels(folder: Path, model: Checkpoint) -> None:
    """AssertionError where a picture is not painted as it was within the bounds."""
    known = facts(folder)
    bounds = known["bounds"][str(model.model.dtype).removeprefix("torch.")]
    for name in known["symbol_checks"]:
        pixels = codec.decode((folder / f"{name}.cdc").read_bytes(), model, **known["settings"])[0]
        with Image.open(folder / f"{name}.png") as reference:
            difference = np.abs(pixels.astype(float) - np.asarray(reference))
        rmse = math.sqrt(np.mean(difference**2))
        assert rmse <= bounds["rmse"], f"{name}: RMSE {rmse:.2f}"
        assert difference.max() <= bounds["peak"], f"{name}: a peak of {difference.max():.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    if not options.check:
        make(options.weights, options.folder)
    model = store.load_model(options.weights, device=options.device, precision=options.precision)
    replay_symbols(options.folder, model)
    replay_pixels(options.folder, model)
    sizes = {path.name: path.stat().st_size for path in sorted(options.folder.iterdir())}
    print(f"{options.folder} replays, bytes: {sizes}")


if __name__ == "__main__":
    main()
