"""A batch against the network alone, and its memory over time. python -m cdcodec.lab.throughput --count 500"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from cdcodec import batch, files, image
from cdcodec import weights as store
from cdcodec.errors import CdcodecError
from cdcodec.files import Job
from cdcodec.lab.bench import SIZE, machine, picture
from cdcodec.lab.data import find_images
from cdcodec.lab.evaluate import memory
from cdcodec.options import FOLDER, device_options, weights_option

ALONE = 40
"""Pictures that the network's own speed is measured on, half of them before the batch and half after it."""


@dataclass(frozen=True)
class Figures:
    """Of one batch. speed, alone: megapixels a second of the batch, and of the network when nothing else runs.

    early, late, peak: resident memory in 10^6 bytes: medians of the second and of the last quarter, and the largest.
    """

    done: int
    failed: tuple[str, ...]
    speed: float
    alone: float
    early: float
    late: float
    peak: float

    def __str__(self) -> str:
        return (
            f"{self.done} done, {len(self.failed)} failed ({', '.join(self.failed)}); "
            f"{self.speed:.3f} MP/s, {self.speed / self.alone:.3f} of the network's {self.alone:.3f}; "
            f"memory {self.early:.0f} MB in the second quarter, {self.late:.0f} in the last, {self.peak:.0f} at most"
        )


def lay_out(folder: Path, count: int, images: Path | None, size: tuple[int, int]) -> None:
    """`count` photographs as links, those of `images` in turn or made ones, and a broken one in the middle."""
    if images is None:
        originals = [folder / f"{i}.jpg" for i in range(min(count, 8))]
        for i, path in enumerate(originals):
            Image.fromarray(np.roll(picture(*size), 31 * i, axis=1)).save(path, quality=92)
    else:
        originals = find_images(images)
    (folder / "photos").mkdir()
    for i in range(count):
        original = originals[i % len(originals)].resolve()
        (folder / "photos" / f"{i:05d}{original.suffix}").symlink_to(original)
    whole = originals[0].read_bytes()
    (folder / "photos" / f"{count // 2:05d}-broken{originals[0].suffix}").write_bytes(whole[: len(whole) // 2])


def measure(jobs: Sequence[Job], task: batch.Task) -> Figures:
    """Carry out the jobs, of which some may fail. Raises CdcodecError."""
    sample = jobs[:: max(1, len(jobs) // ALONE)]
    times = [own_time(task, job) for job in sample[::2]]
    lines: list[dict[str, Any]] = []
    with watched_memory() as resident:
        began = time.perf_counter()
        batch.run(jobs, task, batch.Options(), lines.append)
        seconds = time.perf_counter() - began
    times += [own_time(task, job) for job in sample[1::2]]
    done = [line for line in lines if "error" not in line]
    quarter = max(1, len(resident) // 4)
    return Figures(
        done=len(done),
        failed=tuple(os.path.basename(line["input"]) for line in lines if "error" in line),
        speed=sum(line["width"] * line["height"] for line in done) / seconds / 1e6,
        alone=sum(pixels for pixels, _ in times) / sum(s for _, s in times) / 1e6,
        early=statistics.median(resident[quarter : 2 * quarter] or resident),
        late=statistics.median(resident[-quarter:]),
        peak=max(resident),
    )


def own_time(task: batch.Task, job: Job) -> tuple[int, float]:
    """(pixels, seconds of the network) of one job, reading and writing not counted; nothing of one that fails."""
    try:
        item = task.read(job.source)
    except CdcodecError:
        return 0, 0.0
    model = task.model(item)
    began = time.perf_counter()
    result = task.work(item, model)
    seconds = time.perf_counter() - began
    facts = task.finish(job, item, result).facts
    return facts["width"] * facts["height"], seconds


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Resident memory in 10^6 bytes, five times a second; zeros where the system does not tell."""
    found, ended = [memory("VmRSS") or 0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            found.append(memory("VmRSS") or 0.0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@click.command()
@click.option("--count", type=click.IntRange(min=2), default=100, show_default=True, help="And one broken.")
@click.option("--images", type=FOLDER, help="Take these in turn. [default: made ones, 768 x 512]")
@click.option("--size", type=(int, int), default=SIZE, help="Width and height of made ones.")
@click.option("--lambda", "lam", type=float, default=0.0128, show_default=True)
@click.option("--steps", type=click.IntRange(min=0), default=1, show_default=True)
@weights_option
@device_options
def main(*, count: int, images: Path | None, size: tuple[int, int], lam: float, steps: int, weights: Path | None,
         device: str, threads: int | None, precision: str) -> None:  # fmt: skip
    """Encode and decode many photographs in one batch each, and print what it took."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        model = store.load_model(weights, device=device, precision=precision)
        click.echo(machine(model.model.device.type))
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            lay_out(folder, count, images, size)
            tasks: dict[str, tuple[str, str, batch.Task]] = {
                "encode": ("photos", ".cdc", batch.Encode(lambda: (model, lam))),
                "decode": ("coded", ".png", batch.Decode(lambda _: model, {"steps": steps})),
            }
            for name, (source, suffix, task) in tasks.items():
                out = str(folder / ("coded" if name == "encode" else "decoded"))
                known = image.readable_extensions() if name == "encode" else {".cdc"}
                jobs = files.plan([str(folder / source)], out, suffix=suffix, source_suffixes=known,
                                  target_suffixes=())  # fmt: skip
                files.prepare(jobs, create=True)
                click.echo(f"{name}: {measure(jobs, task)}")
    except CdcodecError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
