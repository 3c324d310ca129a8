"""What the user sees of a batch: notes, a line a file and a passing status on stderr; JSON lines on stdout."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdcodec import files
from cdcodec.files import Job


@dataclass(frozen=True)
class Done:
    """What a task made of one input.

    data: the bytes of the output file. facts: width, height (pixels), lambda, bytes (of the .cdc file), and what else
    `--json` should tell. notes: for the user.
    """

    data: bytes
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How a batch treats what stands in its way, and what it tells."""

    force: bool = False
    skip_existing: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False


Tell = Callable[[dict[str, Any]], None]
"""Takes what `--json` prints of one job."""


class Console:
    """Tells what happens to the jobs, from any thread, and counts it. tell: takes it all, so that nothing is shown."""

    def __init__(self, total: int, verb: str, options: Options, tell: Tell | None = None) -> None:
        self.total, self.verb, self.options, self.tell = total, verb, options, tell
        self.number = self.count = self.left = 0
        self.failures: list[str] = []
        self.status = total > 1 and not options.quiet and tell is None and sys.stderr.isatty()
        self.begin = time.monotonic()
        self.lock = threading.RLock()  # files are finished in another thread than they are started in

    def started(self, job: Job) -> None:
        self.number += 1
        if not self.status:
            return
        spent = time.monotonic() - self.begin
        left = int(spent / (self.number - 1) * (self.total - self.number + 1)) if self.number > 1 else 0
        remaining = f", {left // 60}:{left % 60:02d} left" if left else ""
        with self.lock:
            self.clear()
            print(f"[{self.number}/{self.total}{remaining}] {job.source[-50:]}", end="", file=sys.stderr, flush=True)

    def finished(self, job: Job, done: Done, seconds: float) -> None:
        self.count += 1
        facts = done.facts
        bpp = 8 * facts["bytes"] / (facts["width"] * facts["height"])
        self._json(job, **facts, bpp=round(bpp, 5), seconds=round(seconds, 4), notes=list(done.notes))
        if self.options.quiet or self.options.json:
            return
        for note in done.notes:
            self._line(f"cdcodec: note: {files.shown(job.source)}: {note}")
        rate = f"{facts['bytes']} bytes, {bpp:.4f} bpp, lambda {facts['lambda']:g}"
        size = f"{facts['width']} x {facts['height']}"
        self._line(f"{job.source} -> {job.target}: {size}, {rate}, {seconds:.2f} s")

    def skipped(self, job: Job) -> None:
        self.left += 1
        self._json(job, skipped=True)
        if not (self.options.quiet or self.options.json):
            self._line(f"{job.source}: {job.target} exists already, skipped")

    def failed(self, job: Job, error: Exception) -> None:
        self.failures.append(job.source)
        message = files.one_line(error)
        self._json(job, error=message)
        with self.lock:
            self.clear()
            if self.options.debug:
                traceback.print_exception(error)
            self._line(f"cdcodec: error: {files.shown(job.source)}: {message}")

    def sum_up(self) -> None:
        if self.total == 1 or (self.options.quiet and not self.failures):
            return
        parts = [f"{self.count} {self.verb}"]
        if self.left:
            parts.append(f"{self.left} skipped")
        if self.failures:
            parts.append(f"{len(self.failures)} failed ({', '.join(self.failures[:5])}")
            parts[-1] += ", ...)" if len(self.failures) > 5 else ")"
        self._line("cdcodec: " + ", ".join(parts))

    def clear(self) -> None:
        if self.status:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        if self.tell is not None:
            return
        with self.lock:
            self.clear()
            print(text, file=sys.stderr, flush=True)

    def _json(self, job: Job, **facts: Any) -> None:
        line = {"input": job.source, "output": job.target, **facts}
        if self.tell is not None:
            self.tell(line)
        elif self.options.json:
            print(json.dumps(line), flush=True)
