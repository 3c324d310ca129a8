"""FID and KID over patches of two sets of pictures, by the protocol of HiFiC (Mentzer et al. 2020, appendix A.7).

Each picture gives its non-overlapping 256×256 patches on the grid from the top left corner, and those on the grid
shifted by 128 pixels both ways; smaller pictures give none. Feature vectors by Inception-v3 in the weights of the
original FID (torch-fidelity, 2048 values a patch).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcodec.errors import WeightsError

SIDE = 256
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
MISSING = (
    f"{INCEPTION} is missing (https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0): put it into a folder and "
    "name that with --metric-weights DIR, or into $TORCH_HOME/hub/checkpoints"
)

Extractor = Callable[[Tensor], Tensor]
"""Patches uint8 (N, 3, 256, 256) → features float32 (N, D)."""


def patches(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The patches of a picture (H, W, 3) in both grids, uint8 (N, 256, 256, 3), N may be 0."""
    rows, columns = (size // SIDE for size in pixels.shape[:2])
    found = [
        pixels[top : top + SIDE, left : left + SIDE]
        for shift in (0, 1)  # the shifted grid has a row and a column less
        for top in range(shift * SIDE // 2, (rows - shift) * SIDE, SIDE)
        for left in range(shift * SIDE // 2, (columns - shift) * SIDE, SIDE)
    ]
    return np.stack(found) if found else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def load_inception(folder: Path | None, device: str) -> Extractor:
    """Inception-v3 as an extractor. Raises WeightsError."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from cdcodec.lab.metrics import find_file

    path = find_file((INCEPTION,), folder)
    if path is None:
        raise WeightsError(MISSING)
    try:
        torch.load(path, weights_only=True)  # refuses a pickle with code in it, which the next line would run
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:
        raise WeightsError(f"{path} does not hold Inception-v3 of torch-fidelity: {error}") from None
    network.to(device)
    return lambda x: network(x.to(device))[0]


@torch.inference_mode()
def features(extractor: Extractor, pixels: NDArray[np.uint8], batch: int = 16) -> NDArray[np.float32]:
    """Feature vectors of a picture's patches, float32 (N, D); (0, 0) for a picture without any."""
    cut = patches(pixels)
    if not len(cut):
        return np.zeros((0, 0), np.float32)
    stack = torch.from_numpy(cut).permute(0, 3, 1, 2)
    parts = [extractor(stack[i : i + batch]).float().cpu() for i in range(0, len(stack), batch)]
    return np.asarray(torch.cat(parts).numpy())


def distances(
    a: Sequence[NDArray[np.float32]], b: Sequence[NDArray[np.float32]], names: Collection[str]
) -> dict[str, float | None]:
    """Those named of "fid" and "kid" between the features of two sets of pictures; None below two patches a set."""
    sides = [[part for part in parts if len(part)] for parts in (a, b)]
    if any(sum(map(len, side)) < 2 for side in sides):
        return dict.fromkeys(names)
    one, two = (np.concatenate(side) for side in sides)
    return {name: {"fid": fid, "kid": kid}[name](one, two) for name in names}


def fid(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Fréchet distance (Heusel et al. 2017) between Gaussians fitted to features (N, D) and (M, D); N, M ≥ 2."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    one, two = (fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (a, b))
    return float(fid_statistics_to_metric(one, two, verbose=False)[KEY_METRIC_FID])


def kid(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Unbiased squared MMD with the kernel (x·y/D + 1)³ (Bińkowski et al. 2018), may be slightly negative.

    The mean over 100 seeded subsets of at most 1000 vectors.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    one, two = (torch.from_numpy(x.astype(np.float64)) for x in (a, b))
    size = min(len(one), len(two), 1000)
    return float(kid_features_to_metric(one, two, kid_subset_size=size, verbose=False)[KEY_METRIC_KID_MEAN])
