"""Run an evaluation: every picture through every codec at every setting, measured from real bytes, resumable.

    folder ─► survey ─► Plan ─► units (picture × codec × rung × ρ) ─► work, in `jobs` processes ─► results.jsonl

One unit is one encoding; its decode settings, all of one ρ, start from the same bytes. Results are written in the order
of the plan whatever the number of jobs, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from cdcodec import image
from cdcodec.errors import CdcodecError
from cdcodec.lab import fid, results
from cdcodec.lab.codecs import Codec, Own, Setting
from cdcodec.lab.data import below
from cdcodec.lab.metrics import OF_SETS, Judge
from cdcodec.lab.results import Key, Result


@dataclass(frozen=True)
class Source:
    """A picture of the evaluated folder, or its middle. name: its path below it. digest: of its pixels.

    width, height: pixels, of at most `crop` a side.
    """

    path: Path
    name: str
    digest: str
    width: int
    height: int
    crop: int | None = None

    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (height, width, 3). Raises ImageError."""
        return read_middle(self.path, self.crop)


@dataclass(frozen=True)
class Judging:
    """How results are measured: names of MEASURES, folder of their weights, device, folder for features of patches."""

    measures: tuple[str, ...]
    weights: Path | None
    device: str
    features: Path


@dataclass(frozen=True)
class Unit:
    """One encoding of one picture, and the decode settings that are still to be measured."""

    source: Source
    codec: Codec
    rung: float
    settings: tuple[Setting, ...]

    def key(self, setting: Setting) -> Key:
        picture, codec = (self.source.name, self.source.digest), (self.codec.name, self.codec.version)
        return results.key(picture, codec, setting, self.rung)

    @property
    def cost(self) -> int:
        """Roughly milliseconds on one core, for the progress bar."""
        steps = sum(setting.get("steps", 0) / 5 for setting in self.settings)
        return 1 + round(self.source.width * self.source.height / 1e3 * (1 + len(self.settings) + steps))


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of an evaluation, and where they go."""

    sources: tuple[Source, ...]
    codecs: tuple[Codec, ...]
    judging: Judging
    out: Path
    jobs: int = 1
    threads: int = 1

    @property
    def lines(self) -> Path:
        return self.out / "results.jsonl"

    def units(self) -> Iterator[Unit]:
        for source in self.sources:
            for codec in self.codecs:
                for rung in codec.rungs:
                    for settings in of_one_file(codec.settings):
                        yield Unit(source, codec, rung, settings)


def of_one_file(settings: Sequence[Setting]) -> list[tuple[Setting, ...]]:
    """Settings that share an encoding, together: ours is encoded for the ρ that it shall be decoded at."""
    groups: dict[float | None, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.get("rho"), []).append(setting)
    return [tuple(group) for group in groups.values()]


@dataclass
class Outcome:
    """results: of the plan, in its order. failures: one line for each that could not be had."""

    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def read_middle(path: Path, crop: int | None) -> NDArray[np.uint8]:
    """The pixels of a picture, at most `crop` a side from its middle. Raises ImageError."""
    pixels = image.read(path, strip=True).pixels
    if crop is None:
        return pixels
    top, left = (max(0, size - crop) // 2 for size in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + crop, left : left + crop])


def survey(
    folder: Path, limit: int | None = None, out: Path | None = None, crop: int | None = None
) -> tuple[tuple[Source, ...], list[str]]:
    """(the pictures below a folder that can be read, sorted by path; a line for each that cannot).

    Hidden files and folders are left out, and so is the folder of the report if it lies within.
    """
    sources: list[Source] = []
    broken: list[str] = []
    for path in below(folder, image.readable_extensions(), out):
        if limit is not None and len(sources) == limit:
            break
        name = path.relative_to(folder).as_posix()
        try:
            pixels = read_middle(path, crop)
        except CdcodecError as error:
            broken.append(f"{name}: {error}")
            continue
        digest = f"{zlib.crc32(np.ascontiguousarray(pixels).tobytes()):08x}"
        sources.append(Source(path, name, digest, pixels.shape[1], pixels.shape[0], crop))
    return tuple(sources), broken


def run(plan: Plan, known: Sequence[Result] = (), quiet: bool = False) -> Outcome:
    """Measure what of the plan is neither in results.jsonl nor among `known` results of other runs.

    known: copied where picture, codec, version, setting and rung are the same and no measure is lacking.
    """
    before = results.read(plan.lines) if plan.lines.exists() else []
    if plan.lines.exists():
        results.mend(plan.lines)
    done = {result.key: result for result in before if _complete(result, plan.judging)}
    reusable = {result.key: result for result in known if _complete(result, plan.judging)}
    todo = []
    for unit in plan.units():
        open_settings = tuple(s for s in unit.settings if unit.key(s) not in done)
        if open_settings:
            todo.append(Unit(unit.source, unit.codec, unit.rung, open_settings))
    outcome = Outcome()
    with _progress(sum(unit.cost for unit in todo), quiet) as advance:
        for unit, found, failure in _measure(todo, reusable, plan):
            results.append(plan.lines, found)
            done.update((result.key, result) for result in found)
            if failure:
                outcome.failures.append(f"{unit.source.name}: {unit.codec.name} at {unit.rung:g}: {failure}")
                say(f"cdcodec: error: {outcome.failures[-1]}")
            advance(unit)
    keys = (unit.key(setting) for unit in plan.units() for setting in unit.settings)
    outcome.results = [done[key] for key in keys if key in done]
    return outcome


def say(text: str) -> None:
    """A line on stderr, in the place of the progress bar if there is one."""
    click.echo(("\r\x1b[K" if sys.stderr.isatty() else "") + text, err=True)


def _measure(
    todo: Sequence[Unit], reusable: dict[Key, Result], plan: Plan
) -> Iterator[tuple[Unit, list[Result], str | None]]:
    """(unit, its results, why some are missing) in the order of the plan."""

    def split(unit: Unit) -> tuple[list[Result], Unit]:
        keys = [unit.key(setting) for setting in unit.settings]
        rest = tuple(s for s, key in zip(unit.settings, keys, strict=True) if key not in reusable)
        return [reusable[key] for key in keys if key in reusable], Unit(unit.source, unit.codec, unit.rung, rest)

    parts = [(unit, *split(unit)) for unit in todo]
    if plan.jobs == 1:
        torch.set_num_threads(plan.threads)
        for unit, found, rest in parts:
            yield unit, *_merge(unit, found, work(rest, plan.judging, 1))
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(plan.jobs, context, initializer=_begin_worker, initargs=(plan.threads,)) as pool:
        futures: list[Future[tuple[list[Result], str | None]]] = [
            pool.submit(work, rest, plan.judging, plan.jobs) for _, _, rest in parts
        ]
        try:
            for (unit, found, _), future in zip(parts, futures, strict=True):
                yield unit, *_merge(unit, found, future.result())
        except BrokenExecutor:
            reason = "a worker process died, of too little memory perhaps; --resume goes on, with fewer --jobs"
            raise CdcodecError(reason) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _merge(
    unit: Unit, found: list[Result], made: tuple[list[Result], str | None]
) -> tuple[list[Result], str | None]:
    """Copied and new results of a unit in the order of its settings."""
    order = [unit.key(setting) for setting in unit.settings]
    return sorted([*found, *made[0]], key=lambda result: order.index(result.key)), made[1]


def work(unit: Unit, judging: Judging, jobs: int) -> tuple[list[Result], str | None]:
    """(the results of a unit, why some or all are missing): encode once, decode and measure for each setting."""
    made: list[Result] = []
    if not unit.settings:
        return made, None
    try:
        source, codec = unit.source, unit.codec
        pixels = _pixels(source)
        judge = _judge(judging)
        if isinstance(codec, Own):
            codec.load()
        with Watch() as encoding:
            data = codec.encode(pixels, unit.rung, unit.settings[0])
        for setting in unit.settings:
            with Watch() as decoding:
                decoded = codec.decode(data, setting)
            result = Result(
                source.name, source.digest, source.width, source.height,
                codec.name, codec.version, setting, codec.ladder, unit.rung,
                len(data), codec.overhead(data), 8 * len(data) / (source.width * source.height),
                round(encoding.seconds, 5), round(decoding.seconds, 5),
                _larger(encoding.peak_mb, decoding.peak_mb), _larger(encoding.gpu_mb, decoding.gpu_mb),
                jobs, judge(pixels, decoded),
            )  # fmt: skip
            if set(judging.measures) & set(OF_SETS):
                _keep_features(judging, pixels, features_path(judging.features, source.digest))
                _keep_features(judging, decoded, features_path(judging.features, result.key))
            made.append(result)
    except Exception as error:  # of a plug-in, an external program or a lack of memory: the others go on
        kind = "" if isinstance(error, CdcodecError) else f"{type(error).__name__}: "
        return made, " ".join(f"{kind}{error}".split())
    return made, None


class Watch:
    """Seconds of wall time inside a with-block, and by how much this process's resident memory rose at its peak.

    The peak can be had on Linux only, where a process may reset its own high-water mark. gpu_mb: peak of the GPU.
    """

    seconds: float = 0.0
    peak_mb: float | None = None
    gpu_mb: float | None = None

    def __enter__(self) -> Watch:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resident = memory("VmRSS")
        except OSError:
            self._resident = None
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            self.gpu_mb = round(torch.cuda.max_memory_allocated() / 1e6, 1)
        self.seconds = time.perf_counter() - self._begin
        peak = None if self._resident is None else memory("VmHWM")
        if peak is not None and self._resident is not None:
            self.peak_mb = round(max(0.0, peak - self._resident), 1)


def memory(field: str) -> float | None:
    """VmRSS or VmHWM of this process in 10^6 bytes; None where the system does not tell."""
    try:
        parts = Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()
    except OSError:
        return None
    return int(parts[0]) * 1024 / 1e6 if parts else None


def features_path(folder: Path, which: str | Key) -> Path:
    """Where the features of an original's (its digest) or a result's (its key) patches are kept."""
    return folder / f"{hashlib.sha256(repr(which).encode()).hexdigest()[:20]}.npy"


def _keep_features(judging: Judging, pixels: NDArray[np.uint8], path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = fid.features(_inception(judging.weights, judging.device), pixels)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, vectors)
    temporary.replace(path)


def _complete(result: Result, judging: Judging) -> bool:
    """Whether a result has all that this evaluation measures."""
    single = set(judging.measures) - set(OF_SETS)
    patches = single == set(judging.measures) or features_path(judging.features, result.key).exists()
    return single <= set(result.measures) and patches


@lru_cache(maxsize=1)
def _pixels(source: Source) -> NDArray[np.uint8]:
    return source.pixels()


@lru_cache(maxsize=1)
def _judge(judging: Judging) -> Judge:
    return Judge(judging.measures, judging.weights, judging.device)


@lru_cache(maxsize=1)
def _inception(folder: Path | None, device: str) -> fid.Extractor:
    return fid.load_inception(folder, device)


def _begin_worker(threads: int) -> None:
    """Threads of a worker; it leaves Ctrl-C to its parent, and ends with it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _larger(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)


@contextmanager
def _progress(length: int, quiet: bool) -> Iterator[Callable[[Unit], None]]:
    """A progress bar with the time left on stderr, where that is a terminal."""
    hidden = quiet or not sys.stderr.isatty()

    def shown(unit: Unit | None) -> str | None:
        return None if unit is None else f"{unit.source.name[-40:]} {unit.codec.name}"

    with click.progressbar(length=length, label="eval", file=sys.stderr, hidden=hidden, item_show_func=shown) as bar:
        yield lambda unit: bar.update(unit.cost, unit)
