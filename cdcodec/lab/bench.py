"""How fast: encode and decode in a warm process, and what a fresh process costs. python -m cdcodec.lab.bench"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cdcodec.errors import CdcodecError, SettingError, WeightsError
from cdcodec.options import device_options, weights_option

SIZE = (768, 512)
STEPS = (0, 1, 4, 8, 17)
EFFORT = 10


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """A seeded picture with smooth shades, edges and texture, uint8 (H, W, 3)."""
    random = np.random.RandomState(0)
    mixed = np.zeros((height, width, 3))
    for cell, weight in ((128, 1.0), (32, 0.5), (8, 0.25), (2, 0.08)):
        coarse = Image.fromarray(random.randint(0, 256, (height // cell + 1, width // cell + 1, 3)).astype(np.uint8))
        mixed += weight / 1.83 * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    mixed[:, width // 3 : width // 2] = 255 - mixed[:, width // 3 : width // 2]
    return np.asarray(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5)))


def seconds(action: Callable[[], Any], times: int) -> float:
    """Median wall time of an action, after one call that is not counted."""
    action()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def warm(pixels: NDArray[np.uint8], model: Any, lam: float, steps: Sequence[int], times: int) -> dict[str, float]:
    """Seconds of encode and of decode at each number of steps, the model being loaded."""
    from cdcodec import codec

    data = codec.encode(pixels, model, lam)
    table = {"encode": seconds(lambda: codec.encode(pixels, model, lam), times)}
    with suppress(SettingError, WeightsError):  # of models without a light head, of weights without a judge
        table[f"encode, effort {EFFORT}"] = seconds(lambda: codec.encode(pixels, model, lam, effort=EFFORT), 1)
    for count in steps:
        table[f"decode, {count} steps"] = seconds(partial(codec.decode, data, model, steps=count), times)
    return table


def cold(
    pixels: NDArray[np.uint8], preset: str, lam: float, arguments: Sequence[str], times: int
) -> dict[str, float]:
    """Seconds of whole processes: info, encode and decode of one picture; `arguments` choose weights and device."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded, out = (str(Path(folder) / name) for name in ("in.png", "x.cdc", "out.png"))
        Image.fromarray(pixels).save(source)
        model = ["--model", preset, "--force", *arguments]
        commands = {
            "encode": ["encode", source, coded, "--lambda", f"{lam}", *model],
            "decode, 1 step": ["decode", coded, out, "--steps", "1", *model],
            "info": ["info", coded],
            "--version": ["--version"],
        }
        table = {f"process: {name}": seconds(partial(_run, "-m", "cdcodec", *words), times)
                 for name, words in commands.items()}  # fmt: skip
        # Most of what encode and decode take, and none of our doing.
        return table | {"process: import torch": seconds(partial(_run, "-c", "import torch"), times)}


def _run(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CdcodecError(f"python {' '.join(words)} failed: {done.stderr.strip()}")


def machine(device: str) -> str:
    """One line that says what the figures were taken on."""
    import torch

    from cdcodec.lab.plan import processor

    place = torch.cuda.get_device_name() if device == "cuda" else processor()
    threads = torch.get_num_threads()
    return f"{place}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}, {platform.system()}"


@click.command()
@click.option("--picture", "path", type=click.Path(path_type=Path, exists=True), help="[default: made, 768 x 512]")
@click.option("--lambda", "lam", type=float, default=0.0128, show_default=True)
@click.option("--model", "preset", default="compact-x", show_default=True)
@click.option("--times", type=click.IntRange(min=1), default=5, show_default=True, help="Median of so many.")
@weights_option
@device_options
def main(*, path: Path | None, lam: float, preset: str, times: int, weights: Path | None, device: str,
         threads: int | None, precision: str) -> None:  # fmt: skip
    """Print a table of times."""
    import torch

    from cdcodec import image
    from cdcodec import weights as store
    from cdcodec.device import keep_freed_memory

    keep_freed_memory()  # as the commands do
    if threads:
        torch.set_num_threads(threads)
    try:
        pixels = picture(*SIZE) if path is None else image.read(path, strip=True).pixels
        model = store.load_model(weights, preset=preset, device=device, precision=precision)
        click.echo(machine(model.model.device.type))
        click.echo(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, {preset}, {model.model.dtype}, medians of {times}")
        arguments = ["--device", device, "--precision", precision]
        arguments += ["--weights", str(weights)] if weights else []
        arguments += ["--threads", str(threads)] if threads else []
        steps = [n for n in STEPS if n or model.config.blocks == "compact"]
        table = warm(pixels, model, lam, steps, times) | cold(pixels, preset, lam, arguments, max(1, times // 2))
    except CdcodecError as error:
        raise click.ClickException(str(error)) from None
    for name, value in table.items():
        speed = "" if name.startswith("process") else f"{pixels.shape[0] * pixels.shape[1] / 1e6 / value:10.2f} MP/s"
        click.echo(f"{name:<26}{1000 * value:10.0f} ms{speed}")


if __name__ == "__main__":
    main()
