"""Feeds damaged files to the container and the coder: each must be read or refused by a BitstreamError.

    python tests/fuzz_container.py --runs 100000 --seed 0       mutate sound files, the same ones for the same seed
    python tests/fuzz_container.py --minutes 10                 likewise, until the time is up
    python tests/fuzz_container.py crash-1234.cdc               replay files

Anything else (another exception, a panic, much time or memory) is a bug. The input that did it is kept as
crash-<run>.cdc.
"""

from __future__ import annotations

import random
import resource
import sys
from functools import partial
from pathlib import Path

import fuzzing
import numpy as np
from example import CHUNKS, HEADER, PAYLOAD, SYMBOLS, TABLES
from fuzzing import mangled, reseal

from cdcodec.bits.coder import Reader
from cdcodec.bits.container import pack, read_header, unpack
from cdcodec.errors import BitstreamError
from cdcodec.symbols import Symbols

MEMORY_LIMIT = 4 << 30
MAX_PIXELS = 1 << 12

SOUND = [
    pack(HEADER, {}, PAYLOAD),
    pack(HEADER, CHUNKS, PAYLOAD),
    pack(HEADER, {"icc": bytes(40), "exif": b"II*\0", "xmp": b"<x/>", "alpha": bytes(9), "origin": b"{}"}, PAYLOAD),
]


def mutate(random_: random.Random) -> bytes:
    """A sound file with one to four changes; three of four times with a fitting file check."""
    data = mangled(random_, random_.choice(SOUND), SOUND)
    return reseal(data) if len(data) >= 28 and random_.random() < 0.75 else data


def attempt(data: bytes) -> str:
    """Reads a file as the decoder would, with the example's small tables; "read" or the name of the refusal."""
    try:
        header, _, payload = unpack(data, MAX_PIXELS)
        if read_header(data[:28], MAX_PIXELS) != header:
            raise RuntimeError("unpack and read_header disagree")
        rows, columns = -(-header.height // 16), -(-header.width // 16)
        reader = Reader(payload, TABLES)
        z = reader.read_z((2, -(-rows // 4), -(-columns // 4)))
        index = np.resize(SYMBOLS.index, (1, rows, columns))
        y = reader.read_y(index)
        reader.finish(Symbols(z, y, index, np.zeros_like(y), np.zeros_like(index)))
    except BitstreamError as error:
        return type(error).__name__
    return "read"


def fuzz(runs: int, seed: int, *, minutes: float | None = None, keep: Path | None = None) -> fuzzing.Findings:
    """As `fuzzing.fuzz`. keep: folder for the first file of every outcome."""
    random_ = random.Random(seed)

    def store(outcome: str, data: bytes) -> None:
        assert keep is not None
        (keep / f"{outcome.lower()}.cdc").write_bytes(data)

    return fuzzing.fuzz(partial(mutate, random_), attempt, runs, minutes=minutes, keep=store if keep else None)


def main() -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    fuzzing.command(__doc__, attempt, fuzz, 100_000)


if __name__ == "__main__":
    main()
