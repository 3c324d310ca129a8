"""A folder of photographs, decoded once into one uint8 tensor; crops are cut where it lies, on the CPU or the GPU."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcodec.errors import CdcodecError, ImageError, TrainingError
from cdcodec.image import read
from cdcodec.lab import draws

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
STREAM_IMAGE, STREAM_PLACE = 1, 2


def below(folder: Path, suffixes: Collection[str], without: Path | None = None) -> list[Path]:
    """The files below a folder with one of these endings, sorted, but for hidden ones and those below `without`, a
    folder within it. Raises CdcodecError where it is that folder itself."""
    aside = without and without.resolve()
    if aside == folder.resolve():
        raise CdcodecError(f"{folder} holds the pictures; let what is made of them go to another folder")
    if aside and folder.resolve() not in aside.parents:
        aside = None
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and (aside is None or aside not in path.resolve().parents)
    )


def find_images(folder: Path, without: Path | None = None) -> list[Path]:
    """All pictures to train or validate on that are `below` a folder. Raises TrainingError when there is none."""
    paths = below(folder, SUFFIXES, without)
    if not paths:
        raise TrainingError(f"no pictures in {folder}")
    return paths


def read_named(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture, uint8 (H, W, 3). Raises ImageError that names it."""
    try:
        return read(path, strip=True).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


class Photographs:
    """All pictures of a folder as flat uint8 pixels (sum of H·W, 3) on one device, with each one's offset and size.

    Pictures smaller than `smallest` on a side are left out (`skipped` counts them, and those that cannot be read), and
    without a word those below the folder `without`.
    """

    def __init__(self, folder: Path, device: torch.device, smallest: int, without: Path | None = None) -> None:
        paths = find_images(folder, without)

        def load(path: Path) -> np.ndarray | None:
            try:
                pixels = read(path, strip=True).pixels
            except ImageError:
                return None
            return pixels if min(pixels.shape[:2]) >= smallest else None

        with ThreadPoolExecutor() as pool:
            pictures = [pixels for pixels in pool.map(load, paths) if pixels is not None]
        if not pictures:
            raise TrainingError(f"no picture in {folder} is at least {smallest} pixels wide and high")
        self.skipped = len(paths) - len(pictures)
        sizes = torch.tensor([p.shape[:2] for p in pictures], dtype=torch.int64)
        areas = sizes.prod(dim=1)
        self.count, self.pixels_total = len(pictures), int(areas.sum())
        flat = torch.empty((self.pixels_total, 3), dtype=torch.uint8)
        offset = 0
        for i, area in enumerate(areas.tolist()):
            flat[offset : offset + area] = torch.from_numpy(pictures[i].reshape(-1, 3))
            pictures[i] = np.empty(0, np.uint8)
            offset += area
        self.pixels = flat.to(device)
        self.sizes = sizes.to(device)
        self.offsets = (areas.cumsum(0) - areas).to(device)

    def __str__(self) -> str:
        return f"{self.count} photographs, {self.pixels_total / 1e6:.0f} megapixels"

    def crops(self, key: Tensor, side: int) -> Tensor:
        """float32 (B, 3, side, side) in [-1, 1] for draw keys (B,): a piece of a picture each, half mirrored."""
        image = (draws.uniform(key, STREAM_IMAGE, 1)[:, 0] * self.count).long().clamp(max=self.count - 1)
        place = draws.uniform(key, STREAM_PLACE, 3)
        height, width = self.sizes[image].unbind(1)
        top = (place[:, 0] * (height - side + 1)).long()
        left = (place[:, 1] * (width - side + 1)).long()
        steps = torch.arange(side, device=key.device)
        columns = torch.where((place[:, 2] < 0.5)[:, None], steps, side - 1 - steps)
        rows = self.offsets[image][:, None] + (top[:, None] + steps) * width[:, None] + left[:, None]
        pixels = self.pixels[rows[:, :, None] + columns[:, None, :]]
        return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)
