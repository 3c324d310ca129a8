"""Feeds hostile files to the whole decoder, with the tests' tiny model: each is painted, or refused by a CdcodecError.

    python tests/fuzz_decode.py --runs 5000 --seed 0            mutate and forge files, the same ones for the same seed
    python tests/fuzz_decode.py --minutes 10                    likewise, until the time is up
    python tests/fuzz_decode.py crash-1234.cdc                  replay files
    python tests/fuzz_decode.py --keep tests/vectors/hostile    also keep the first file of every new outcome

Most of the files have a fitting file check, many also code sound symbols of extreme values: what lies behind the checks
is reached. Another exception, or more memory or time than fuzzing.py allows, is a bug; the file is kept as
crash-<run>.cdc.
Files are kept without the id of the weights, which `attempt` fills in.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tempfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import fuzzing
import numpy as np
from fuzzing import Findings, mangled, reseal
from PIL import Image

from cdcodec import codec, image
from cdcodec.bits import coder, container
from cdcodec.errors import CdcodecError
from cdcodec.weights import Checkpoint, load_model

MAX_PIXELS = 1 << 15
SIDES = [1, 2, 15, 16, 17, 63, 64, 65, 200, 1024, 32768, 65535, 65536]


def adopt(data: bytes, checkpoint: Checkpoint) -> bytes:
    """data with the model's id in the place of 0."""
    return _renamed(data, bytes(4), checkpoint.id.to_bytes(4, "little"))


def nameless(data: bytes, checkpoint: Checkpoint) -> bytes:
    """data with 0 in the place of the model's id."""
    return _renamed(data, checkpoint.id.to_bytes(4, "little"), bytes(4))


def _renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file check fits as well or as badly as before."""
    if len(data) < 28 or data[8:12] != old:
        return data
    return reseal(data[:8] + new + data[12:]) if reseal(data) == data else data[:8] + new + data[12:]


def attempt(data: bytes, checkpoint: Checkpoint, max_pixels: int = MAX_PIXELS) -> str:
    """Decodes a file to a PNG as `cdcodec decode` would; "painted" or the name and the words of the refusal."""
    try:
        data = adopt(data, checkpoint)
        header = container.read_header(data, max_pixels)
        pixels, chunks = codec.decode(data, checkpoint, steps=1, gamma=0.5, max_pixels=max_pixels)
        if pixels.shape != (header.height, header.width, 3):
            raise RuntimeError(f"a picture of {pixels.shape}")
        depth = image.original_depth(chunks)
        image.write(image.to_pil(pixels, chunks), io.BytesIO(), "PNG", depth=depth)
    except CdcodecError as error:
        return f"{type(error).__name__}: {' '.join(re.findall('[a-z]+', str(error).lower())[:5])}"
    return "painted"


def sound(checkpoint: Checkpoint) -> list[bytes]:
    """Files of small pictures in all modes, with all chunks."""
    made = []
    for number, (mode, size) in enumerate(
        [("RGB", (16, 16)), ("RGB", (70, 33)), ("LA", (20, 12)), ("RGBA", (33, 65)), ("L", (1, 50))]
    ):
        values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        picture = Image.fromarray(values).convert(mode)
        if number % 2:
            picture.info |= {"icc_profile": bytes(200), "exif": b"Exif\0\0II*\0" + bytes(20), "xmp": b"<x/>"}
        read = image.from_pil(picture)
        made.append(codec.encode(read.pixels, checkpoint, checkpoint.ladder[number], read.chunks))
    return made


def forge(random_: random.Random, checkpoint: Checkpoint) -> bytes:
    """A wholly sound file of symbols that no encoder would choose."""
    config = checkpoint.config
    generator = np.random.default_rng(random_.randrange(2**32))
    header = container.Header(checkpoint.id, random_.choice(checkpoint.ladder), random_.choice(SIDES[:9]),
                              random_.choice(SIDES[:9]), 0)  # fmt: skip
    rows, columns = -(-header.height // 16), -(-header.width // 16)
    reach = random_.choice([0, 1, 30, 1000, 32767])
    z = generator.integers(-reach, reach + 1, (config.hyper, -(-rows // 4), -(-columns // 4)), dtype=np.int32)
    reach = random_.choice([0, 1, 30, 1000, 32767])
    y = generator.integers(-reach, reach + 1, config.latent * rows * columns, dtype=np.int32)
    symbols = checkpoint.model.integer(z, (rows, columns), lambda places, index, mean: y[places])
    header = replace(header, symbol_check=symbols.check(config.fraction_bits))
    return container.pack(header, hostile_chunks(random_), coder.write(symbols, checkpoint.tables))


def hostile_chunks(random_: random.Random) -> dict[str, bytes]:
    """Chunks that claim much: pictures of other sizes, bombs, damaged profiles, JSON of all kinds."""
    chunks: dict[str, bytes] = {}
    if random_.random() < 0.5:
        mode, size = random_.choice(["L", "L", "1", "RGB", "P"]), tuple(random_.choices(SIDES[:10], k=2))
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        chunks["alpha"] = mangled(random_, buffer.getvalue()) if random_.random() < 0.5 else buffer.getvalue()
        if random_.random() < 0.3:
            chunks["alpha"] = bomb(random_)
    for name in ("icc", "exif", "xmp"):
        if random_.random() < 0.3:
            chunks[name] = random_.choice([b"II*\0\x08\0\0\0\xff\xff", b"MM\0*", bytes(5000), random_.randbytes(64)])
    if random_.random() < 0.5:
        mode = random_.choice(["L", "LA", "RGB", "RGBA"] * 3 + ["CMYK", 7, None, [], {}])
        words = json.dumps({"mode": mode, "depth": random_.choice([8, 16] * 5 + [8.0, True, -1, 10**30, "8"])}).encode()
        chunks["origin"] = random_.choice([words, words, words, b"[" * 900, b"null", b"\xff", b"9" * 999, b"{}"])
    return chunks


def bomb(random_: random.Random) -> bytes:
    """A PNG whose few bytes unpack to many: in its pixels, its text or its profile."""
    many = zlib.compress(bytes(random_.choice([1, 30]) << 20), 9)
    kind = random_.choice([b"zTXt", b"iTXt", b"iCCP", b"IDAT"])
    lead = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0", b"IDAT": b""}[kind]
    side = random_.choice([1, 16, 65536])
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (kind, lead + many), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def mutate(random_: random.Random, files: list[bytes], checkpoint: Checkpoint) -> bytes:
    """A sound file changed, or a forged one."""
    kind = random_.random()
    if kind < 0.25:
        data = forge(random_, checkpoint)
        return data if random_.random() < 0.7 else reseal(data[:28] + mangled(random_, data[28:]))
    header, chunks, payload = container.unpack(random_.choice(files))
    if kind < 0.5:
        header = replace(header, width=random_.choice(SIDES), height=random_.choice(SIDES))
    elif kind < 0.6:
        header = replace(header, lam=random_.choice([1e-38, 0.0024, 0.0768, 0.077, 3e38]))
    elif kind < 0.8:
        words = bytearray(payload)
        for _ in range(random_.randint(1, 3)):
            words[(at := random_.randrange(len(words))) : at + 1] = bytes([random_.randrange(256)])
        payload = bytes(words[: random_.choice([4, 8, len(words), len(words)])])
    elif kind < 0.9:
        chunks = hostile_chunks(random_)
    data = container.pack(header, chunks, payload)
    if kind < 0.9:
        return data
    data = mangled(random_, data)
    return reseal(data) if len(data) >= 28 and random_.random() < 0.8 else data


def fuzz(
    checkpoint: Checkpoint, runs: int, seed: int, *, minutes: float | None = None, keep: Path | None = None
) -> Findings:
    """As `fuzzing.fuzz`. keep: folder for the first file of every outcome, without the id of the weights."""
    random_, files = random.Random(seed), sound(checkpoint)
    for data in files:  # what is loaded and allocated once is not counted
        attempt(data, checkpoint)

    def store(outcome: str, data: bytes) -> None:
        assert keep is not None
        name = outcome.lower().replace(": ", "-").replace(" ", "-")
        (keep / f"{name}.cdc").write_bytes(nameless(data, checkpoint))

    return fuzzing.fuzz(
        lambda: mutate(random_, files, checkpoint), lambda data: attempt(data, checkpoint), runs,
        minutes=minutes, keep=store if keep else None,
    )  # fmt: skip


def main() -> None:
    checkpoint = tiny_model()
    fuzzing.command(__doc__, lambda data: attempt(data, checkpoint), partial(fuzz, checkpoint), 5000)


def tiny_model() -> Checkpoint:
    from conftest import write_tiny_weights

    with tempfile.TemporaryDirectory() as folder:
        return load_model(write_tiny_weights(Path(folder)), device="cpu", precision="float32")


if __name__ == "__main__":
    main()
