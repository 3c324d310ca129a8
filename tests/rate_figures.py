"""Real bytes against the model's estimate: python tests/rate_figures.py PHOTOS [--weights DIR] [--limit N]

Of every picture of a folder at every λ of the ladder: bytes, the tables' ideal bits and the continuous estimate
(at most 0.2 % and 32 bytes above it), whether the rate falls strictly as λ rises, and whether ŷ comes back as it was.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

from cdcodec import codec, image, weights
from cdcodec.bits.tables import ideal_bits
from cdcodec.image import pad
from cdcodec.lab.rate import estimate_bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    root = weights.find_weights(options.weights)
    model = weights.load_model(root)
    floats, _, config = weights.load_tensors(root)
    above, rising, worst = 0, 0, 0.0
    totals = np.zeros((len(model.ladder), 4))
    paths = sorted(options.photos.iterdir())[: options.limit]
    for path in paths:
        pixels = image.read(path, strip=True).pixels
        sizes = []
        for i, lam in enumerate(model.ladder):
            data = codec.encode(pixels, model, lam)
            given = model.model.analyse(pad(pixels, config.padding), lam)
            symbols = codec.read_symbols(data, model)[2]
            if not np.array_equal(symbols.latent(config.fraction_bits), given.latent(config.fraction_bits)):
                raise SystemExit(f"{path.name}, λ {lam:g}: ŷ did not come back as it was")
            rows = np.broadcast_to(np.arange(config.hyper)[:, None, None], symbols.z.shape)
            ideal = ideal_bits(symbols.z, rows, model.tables.z) + ideal_bits(symbols.y, symbols.index, model.tables.y)
            estimate = estimate_bits(floats, config, symbols)
            excess = (8 * len(data) - estimate - 256) / estimate
            worst = max(worst, excess)
            if excess > 0.002:
                above += 1
                print(f"{path.name}, λ {lam:g}: {len(data)} bytes, {excess:.2%} + 32 bytes above the estimate")
            totals[i] += 8 * len(data), ideal, estimate, 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
            sizes.append(len(data))
        if any(a <= b for a, b in pairwise(sizes)):
            rising += 1
            print(f"{path.name}: bytes do not fall strictly: {sizes}")
    print(f"{'lambda':>8} {'bpp':>7} {'real/ideal':>11} {'real/estimate':>14}")
    for lam, (real, ideal, estimate, bpp) in zip(model.ladder, totals, strict=True):
        print(f"{lam:>8g} {bpp / len(paths):>7.4f} {real / ideal - 1:>11.3%} {real / estimate - 1:>14.3%}")
    print(f"{len(paths)} pictures: {above} files above the estimate by more than 0.2 % + 32 bytes (worst {worst:.2%}), "
          f"{rising} pictures whose rate does not fall strictly")


if __name__ == "__main__":
    main()
