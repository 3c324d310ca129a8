"""How well targets of size are met: python tests/target_figures.py PHOTOS [--weights DIR] [--targets 20] [--limit N]

Of every picture of a folder, random sizes between those of the ladder's ends; without --weights, the tests' tiny model.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

import numpy as np

from cdcodec import codec, image, target, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    if options.weights:
        model = weights.load_model(options.weights)
        typical = {rung.lam: rung.bpp for rung in weights.list_checkpoints(options.weights) if rung.bpp}
    else:
        from fuzz_decode import tiny_model

        model, typical = tiny_model(), {}
    encodes: Counter[int] = Counter()
    over = near = 0
    for number, path in enumerate(sorted(options.photos.iterdir())[: options.limit]):
        pixels, random = image.read(path).pixels, np.random.default_rng(number)
        least, most = (math.log(len(codec.encode(pixels, model, model.ladder[i]))) for i in (-1, 0))
        for _ in range(options.targets):
            size = math.ceil(math.exp(random.uniform(least, most)))
            hit = target.encode(pixels, model, target.Target("size", size), typical=typical)
            over += len(hit.data) > size
            near += 0.97 * size <= len(hit.data) <= size
            encodes[hit.encodes] += 1
    total = sum(encodes.values())
    print(f"{total} targets: {over} over, {near / total:.1%} within 3 % below; encodes {sorted(encodes.items())}")


if __name__ == "__main__":
    main()
