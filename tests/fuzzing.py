"""What the fuzzers share: changes to bytes, the loop that counts outcomes and keeps what should never come up."""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_SECONDS = 2.0
MAX_GROWTH = 1 << 30
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0x7F800000, 0xFFFFFFFF]


def reseal(data: bytes) -> bytes:
    """data with the file check made to fit, so that what lies behind the check is reached too."""
    check = zlib.crc32(data[28:], zlib.crc32(data[:24]))
    return data[:24] + check.to_bytes(4, "little") + data[28:]


def mangled(random_: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """data with one to four changes anywhere; pieces of `others` may come in."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(changed) + 1)
        match random_.randrange(6 if others else 5):
            case 0:
                changed[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                changed[at : at + 4] = random_.choice(NUMBERS).to_bytes(4, "little")
            case 2:
                changed[at:at] = random_.randbytes(random_.randrange(9))
            case 3:
                del changed[at : at + random_.randrange(9)]
            case 4:
                del changed[at:]
            case 5:
                changed[at:at] = random_.choice(others)[random_.randrange(40) :]
    return bytes(changed)


@dataclass
class Findings:
    """How often each outcome came up, files in a row, the longest time in seconds, growth of peak memory in bytes."""

    outcomes: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    slowest: float = 0.0
    growth: int = 0

    def __str__(self) -> str:
        lines = [f"{count:8d}  {outcome}" for outcome, count in self.outcomes.most_common()]
        figures = f"{self.runs} files, slowest {self.slowest:.2f} s, peak memory +{self.growth >> 20} MiB"
        return "\n".join([*lines, figures])


def peak_memory() -> int:
    """Bytes, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(
    make: Callable[[], bytes],
    attempt: Callable[[bytes], str],
    runs: int,
    *,
    minutes: float | None = None,
    keep: Callable[[str, bytes], None] | None = None,
) -> Findings:
    """Try so many files, or for so many minutes. keep: called with every new outcome and its file.

    What should never come up, another exception, more time or more memory than stated above, is raised, and the file
    that did it kept as crash-<run>.cdc.
    """
    findings, before = Findings(), peak_memory()
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    while findings.runs < runs if deadline is None else time.monotonic() < deadline:
        data, started = make(), time.process_time()
        try:
            outcome = attempt(data)
            seconds, growth = time.process_time() - started, peak_memory() - before
            if seconds > MAX_SECONDS or growth > MAX_GROWTH:
                raise RuntimeError(f"{seconds:.1f} s, {growth >> 20} MiB")
        except BaseException:
            Path(f"crash-{findings.runs}.cdc").write_bytes(data)
            raise
        if keep is not None and outcome not in findings.outcomes:
            keep(outcome, data)
        findings.outcomes[outcome] += 1
        findings.runs, findings.growth = findings.runs + 1, growth
        findings.slowest = max(findings.slowest, seconds)
    return findings


def command(words: str, attempt: Callable[[bytes], str], fuzzer: Callable[..., Findings], runs: int) -> None:
    """The command line of a fuzzer. words: its help. fuzzer: takes runs, seed, minutes and, if it can, keep."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the first file of every outcome")
    options = parser.parse_args()
    for path in options.files:
        print(f"{path}: {attempt(path.read_bytes())}")
    if not options.files:
        print(fuzzer(options.runs, options.seed, minutes=options.minutes, keep=options.keep))
