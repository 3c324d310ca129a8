"""Carry out planned jobs: keep going after a failure, tell what happened, sum up at the end.

A task has three stages, read, work and finish. Only work needs the network; meanwhile the next file is read and the
last one finished and written.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cdcodec import files
from cdcodec import image as pictures
from cdcodec.bits import container
from cdcodec.config import MAX_PIXELS
from cdcodec.console import Console, Done, Options, Tell
from cdcodec.errors import WeightsError
from cdcodec.files import Job
from cdcodec.threads import Sink, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cdcodec.target import Hit, Target
    from cdcodec.weights import Checkpoint

AHEAD = 2
"""Inputs read ahead of the network, and outputs waiting behind it."""


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
    """Pictures to .cdc files.

    load: gives the model and the λ to use, the same ones at every call. target: instead of that λ, one searched for
    each picture; typical, settings: as `target.encode` takes them. effort: as `codec.encode` takes it, with the ρ of
    the settings.
    """

    load: Callable[[], tuple[Checkpoint, float]]
    max_pixels: int = MAX_PIXELS
    strip: bool = False
    target: Target | None = None
    typical: Mapping[float, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    effort: int = 0
    verb: ClassVar[str] = "encoded"
    one_model: ClassVar[bool] = True

    def read(self, source: str) -> pictures.Picture:
        content = files.read(source) if source == files.STANDARD else source
        return pictures.read(content, max_pixels=self.max_pixels, strip=self.strip)

    def model(self, picture: pictures.Picture) -> tuple[Checkpoint, float]:
        return self.load()

    def work(self, picture: pictures.Picture, model: tuple[Checkpoint, float]) -> Hit:
        from cdcodec import codec, target

        checkpoint, lam = model
        if self.target is None:
            rho = self.settings.get("rho")
            data = codec.encode(picture.pixels, checkpoint, lam, picture.chunks, effort=self.effort, rho=rho)
            return target.Hit(data, lam, 1)
        return target.encode(
            picture.pixels, checkpoint, self.target, picture.chunks, typical=self.typical, settings=self.settings,
            effort=self.effort,
        )

    def finish(self, job: Job, picture: pictures.Picture, hit: Hit) -> Done:
        height, width = picture.pixels.shape[:2]
        facts = {"width": width, "height": height, "lambda": hit.lam, "bytes": len(hit.data)}
        if self.target and hit.measured is not None:
            facts[self.target.kind] = round(hit.measured, 5)
        return Done(hit.data, facts, (*picture.notes, *hit.notes))


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
    max_pixels: int = MAX_PIXELS
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
        notes = pictures.write(pictures.to_pil(pixels, chunks), buffer, format, depth=depth)
        height, width = pixels.shape[:2]
        lam = container.read_header(data, self.max_pixels).lam
        return Done(buffer.getvalue(), {"width": width, "height": height, "lambda": lam, "bytes": len(data)}, notes)


def run(jobs: Sequence[Job], task: Task, options: Options, tell: Tell | None = None) -> int:
    """Carry out the jobs; returns the exit code, 1 when any of them failed.

    tell: called with what `--json` prints of each job, in their order; then nothing is printed.
    With several jobs, two threads read the next inputs and finish and write the last outputs while this one works.
    Raises WeightsError when `task.one_model` and its weights cannot be used, and BrokenPipeError.
    """
    console = Console(len(jobs), task.verb, options, tell)
    try:
        if len(jobs) == 1:
            _one_by_one(jobs, task, options, console)
        else:
            _pipeline(jobs, task, options, console)
    finally:
        console.clear()
    console.sum_up()
    return 1 if console.failures else 0


@dataclass
class _Passage:
    """A job on its way: what is known of it so far. seconds: those of work and finish, neither reading nor loading."""

    job: Job
    item: Any = None
    result: Any = None
    done: Done | None = None
    seconds: float = 0.0
    skipped: bool = False
    error: Exception | None = None

    def go(self, stage: Callable[[_Passage], None]) -> None:
        """Carry out a stage unless an earlier one failed; keep what went wrong."""
        if self.error or self.skipped:
            return
        try:
            stage(self)
        except BrokenPipeError:
            raise
        except Exception as error:  # also a fault of ours must not stop the others
            self.error = error


def _stages(task: Task, options: Options) -> list[Callable[[_Passage], None]]:
    """Read, work and finish, each for a passage. WeightsError ends all where all need the same weights."""

    def read(passage: _Passage) -> None:
        if files.exists(passage.job) and not options.force:
            passage.skipped = options.skip_existing
            if not passage.skipped:
                raise files.already_exists(passage.job.target)
            return
        passage.item = task.read(passage.job.source)

    def work(passage: _Passage) -> None:
        model = task.model(passage.item)
        started = time.perf_counter()
        passage.result = task.work(passage.item, model)
        passage.seconds = time.perf_counter() - started

    def finish(passage: _Passage) -> None:
        started = time.perf_counter()
        passage.done = task.finish(passage.job, passage.item, passage.result)
        try:
            files.write(passage.job.target, passage.done.data, force=options.force)
        except files.ExistsError:  # it was not there when this began
            if not options.skip_existing:
                raise
            passage.done = None
        passage.seconds += time.perf_counter() - started

    return [read, work, finish]


def _one_by_one(jobs: Iterable[Job], task: Task, options: Options, console: Console) -> None:
    for job in jobs:
        console.started(job)
        passage = _Passage(job)
        for stage in _stages(task, options):
            passage.go(stage)
        _raise_if_final(passage, task)
        _report(passage, console)


def _pipeline(jobs: Sequence[Job], task: Task, options: Options, console: Console) -> None:
    """As _one_by_one, but reading and finishing in threads of their own; all that happens to a job is told in order.

    At most 2 * AHEAD + 3 pictures are in memory. The threads are daemons: one that waits for an input forever does not
    keep the program from ending. A write under way is waited for.
    """
    read, work, finish = _stages(task, options)

    def reading() -> Iterator[_Passage]:
        for job in jobs:
            passage = _Passage(job)
            passage.go(read)
            yield passage

    def finished(passage: _Passage) -> None:
        passage.go(finish)
        _report(passage, console)

    source = Source(reading(), AHEAD)
    sink = Sink(finished, AHEAD)
    try:
        for passage in source:
            console.started(passage.job)
            passage.go(work)
            _raise_if_final(passage, task)
            sink.put(passage)
    finally:
        source.stop()
        sink.close()


def _raise_if_final(passage: _Passage, task: Task) -> None:
    if isinstance(passage.error, WeightsError) and task.one_model:
        raise passage.error


def _report(passage: _Passage, console: Console) -> None:
    if passage.error:
        console.failed(passage.job, passage.error)
    elif passage.done:
        console.finished(passage.job, passage.done, passage.seconds)
    else:
        console.skipped(passage.job)


__all__ = ["AHEAD", "Decode", "Done", "Encode", "Options", "Task", "run"]
