"""Carry out planned jobs one after the other: keep going after a failure, tell what happened, sum up at the end.

A task has three stages, read, work and write; only work needs the network, so that a later version can read the next
file and write the last one meanwhile.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cdcodec import files
from cdcodec import image as pictures
from cdcodec.bits import container
from cdcodec.errors import WeightsError
from cdcodec.files import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cdcodec.weights import Checkpoint


@dataclass(frozen=True)
class Done:
    """What a task made of one input.

    data: the bytes of the output file. facts: width, height (pixels), lambda, bytes (of the .cdc file), and what else
    `--json` should tell. notes: for the user.
    """

    data: bytes
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


class Task(Protocol):
    """`one_model`: all inputs need the same weights, so that a WeightsError ends the batch."""

    verb: ClassVar[str]
    one_model: ClassVar[bool]

    def read(self, source: str) -> Any: ...

    def model(self, item: Any) -> Any: ...

    def work(self, item: Any, model: Any) -> Any: ...

    def finish(self, job: Job, item: Any, result: Any) -> Done: ...


@dataclass(frozen=True)
class Encode:
    """Pictures to .cdc files. `load` gives the model and the λ to use, the same ones at every call."""

    load: Callable[[], tuple[Checkpoint, float]]
    max_pixels: int = pictures.MAX_PIXELS
    strip: bool = False
    verb: ClassVar[str] = "encoded"
    one_model: ClassVar[bool] = True

    def read(self, source: str) -> pictures.Picture:
        content = files.read(source) if source == files.STANDARD else source
        return pictures.read(content, max_pixels=self.max_pixels, strip=self.strip)

    def model(self, picture: pictures.Picture) -> tuple[Checkpoint, float]:
        return self.load()

    def work(self, picture: pictures.Picture, model: tuple[Checkpoint, float]) -> tuple[bytes, float]:
        from cdcodec import codec

        return codec.encode(picture.pixels, model[0], model[1], picture.chunks), model[1]

    def finish(self, job: Job, picture: pictures.Picture, result: tuple[bytes, float]) -> Done:
        data, lam = result
        height, width = picture.pixels.shape[:2]
        return Done(data, {"width": width, "height": height, "lambda": lam, "bytes": len(data)}, picture.notes)


@dataclass(frozen=True)
class Decode:
    """.cdc files to pictures. `load` gives the model for a checkpoint id.

    settings: steps, gamma, rho and seed, as `codec.decode` takes them.
    format: Pillow's name of the format; None goes by the target's extension, PNG on standard output.
    """

    load: Callable[[int], Checkpoint]
    settings: Mapping[str, Any]
    format: str | None = None
    original_depth: bool = False
    max_pixels: int = pictures.MAX_PIXELS
    verb: ClassVar[str] = "decoded"
    one_model: ClassVar[bool] = False

    def read(self, source: str) -> bytes:
        data = files.read(source)
        container.read_header(data, self.max_pixels)
        return data

    def model(self, data: bytes) -> Checkpoint:
        return self.load(container.read_header(data, self.max_pixels).checkpoint)

    def work(self, data: bytes, model: Checkpoint) -> tuple[NDArray[np.uint8], dict[str, bytes]]:
        from cdcodec import codec

        return codec.decode(data, model, max_pixels=self.max_pixels, **self.settings)

    def finish(self, job: Job, data: bytes, result: tuple[NDArray[np.uint8], dict[str, bytes]]) -> Done:
        pixels, chunks = result
        suffix = os.path.splitext(job.target)[1].lower()
        format = self.format or pictures.writable_extensions().get(suffix, "PNG")
        depth = pictures.original_depth(chunks) if self.original_depth else 8
        buffer = io.BytesIO()
        pictures.write(pictures.to_pil(pixels, chunks), buffer, format, depth=depth)
        height, width = pixels.shape[:2]
        lam = container.read_header(data, self.max_pixels).lam
        return Done(buffer.getvalue(), {"width": width, "height": height, "lambda": lam, "bytes": len(data)})


@dataclass(frozen=True)
class Options:
    """How a batch treats what stands in its way, and what it tells."""

    force: bool = False
    skip_existing: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False


def run(jobs: Sequence[Job], task: Task, options: Options) -> int:
    """Carry out the jobs; returns the exit code, 1 when any of them failed.

    Raises WeightsError when `task.one_model` and its weights cannot be used, and BrokenPipeError.
    """
    console = _Console(len(jobs), task.verb, options)
    try:
        for job in jobs:
            console.started(job)
            if files.exists(job) and options.skip_existing:
                console.skipped(job)
                continue
            try:
                if files.exists(job) and not options.force:
                    raise files.already_exists(job.target)
                done, seconds = _carry_out(job, task, options.force)
            except BrokenPipeError:
                raise
            except Exception as error:  # also a fault of ours must not stop the others
                if isinstance(error, WeightsError) and task.one_model:
                    raise
                console.failed(job, error)
            else:
                console.finished(job, done, seconds)
    finally:
        console.clear()
    console.sum_up()
    return 1 if console.failures else 0


def _carry_out(job: Job, task: Task, force: bool) -> tuple[Done, float]:
    """One job; the seconds are those of work and write, without reading the input and loading the model."""
    item = task.read(job.source)
    model = task.model(item)
    started = time.perf_counter()
    done = task.finish(job, item, task.work(item, model))
    files.write(job.target, done.data, force=force)
    return done, time.perf_counter() - started


class _Console:
    """What the user sees: notes, a line a file and a passing status on stderr; JSON lines on stdout."""

    def __init__(self, total: int, verb: str, options: Options) -> None:
        self.total, self.verb, self.options = total, verb, options
        self.number = self.count = self.left = 0
        self.failures: list[str] = []
        self.status = total > 1 and not options.quiet and sys.stderr.isatty()
        self.begin = time.monotonic()

    def started(self, job: Job) -> None:
        self.number += 1
        if self.status:
            spent = time.monotonic() - self.begin
            left = int(spent / (self.number - 1) * (self.total - self.number + 1)) if self.number > 1 else 0
            remaining = f", {left // 60}:{left % 60:02d} left" if left else ""
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
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def _json(self, job: Job, **facts: Any) -> None:
        if self.options.json:
            print(json.dumps({"input": job.source, "output": job.target, **facts}), flush=True)
