"""The decoder under atheris, a fuzzer led by coverage (pip install atheris):

    python tests/fuzz_atheris.py corpus/ tests/vectors/hostile -max_total_time=600

What libFuzzer does to the bytes keeps no check valid, so the file check is made to fit three times of four, and the id
of the weights is filled in. New inputs gather in corpus/; one that raises anything but CdcodecError is kept as crash-….
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["cdcodec"]):
    import fuzz_decode
    from fuzzing import reseal


def main() -> None:
    checkpoint = fuzz_decode.tiny_model()
    name = checkpoint.id.to_bytes(4, "little")

    def one(data: bytes) -> None:
        if len(data) > 28 and data[-1] % 4:
            data = reseal(b"\xcdCDC\1\0" + data[6:8] + name + data[12:])
        fuzz_decode.attempt(data, checkpoint)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
