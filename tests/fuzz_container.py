"""Feeds damaged files to the container and the coder: each must be read or refused by a BitstreamError.

    python tests/fuzz_container.py --runs 100000 --seed 0       mutate sound files, the same ones for the same seed
    python tests/fuzz_container.py crash-1234.cdc               replay files

Anything else (another exception, a panic, much memory) is a bug. The input that did it is kept as crash-<run>.cdc.
"""

from __future__ import annotations

import argparse
import random
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from example import CHUNKS, HEADER, PAYLOAD, SYMBOLS, TABLES

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
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0x7F800000, 0xFFFFFFFF]


def reseal(data: bytes) -> bytes:
    """data with the file check made to fit, so that what lies behind the check is reached too."""
    check = zlib.crc32(data[28:], zlib.crc32(data[:24]))
    return data[:24] + check.to_bytes(4, "little") + data[28:]


def mutate(random_: random.Random) -> bytes:
    """A sound file with one to four changes; three of four times with a fitting file check."""
    data = bytearray(random_.choice(SOUND))
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(6):
            case 0:
                data[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                data[at : at + 4] = random_.choice(NUMBERS).to_bytes(4, "little")
            case 2:
                data[at:at] = random_.randbytes(random_.randrange(9))
            case 3:
                del data[at : at + random_.randrange(9)]
            case 4:
                del data[at:]
            case 5:
                data[at:at] = random_.choice(SOUND)[random_.randrange(40) :]
    return reseal(bytes(data)) if len(data) >= 28 and random_.random() < 0.75 else bytes(data)


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
        reader.finish(Symbols(z, y, index, np.zeros_like(y)))
    except BitstreamError as error:
        return type(error).__name__
    return "read"


def fuzz(runs: int, seed: int) -> Counter[str]:
    """How often each outcome came up; raises, the input kept, what should never come up."""
    random_ = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for run in range(runs):
        data = mutate(random_)
        try:
            outcomes[attempt(data)] += 1
        except BaseException:
            Path(f"crash-{run}.cdc").write_bytes(data)
            raise
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    for path in options.files:
        print(f"{path}: {attempt(path.read_bytes())}")
    if not options.files:
        for outcome, count in fuzz(options.runs, options.seed).most_common():
            print(f"{count:8d}  {outcome}")


if __name__ == "__main__":
    main()
