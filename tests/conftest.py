"""Shared fixtures: a seeded, untrained tiny model in the shipped layout, and small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cdcodec.config import PRESETS, ModelConfig
from cdcodec.weights import Checkpoint, load_model

torch.set_num_threads(1)  # tiny models are fastest so; what must not depend on it sets other numbers itself


def write_tiny_weights(root: Path, architecture: ModelConfig = PRESETS["tiny-x"]) -> Path:
    """Make a weights folder holding compact-x with the architecture of tiny-x, all eight λ, lively random weights."""
    import dataclasses

    from cdcodec.lab.export import write_checkpoints
    from cdcodec.lab.rate import RateModel
    from cdcodec.nets.networks import Networks

    config = dataclasses.replace(architecture, preset="compact-x")
    torch.manual_seed(3)
    networks, rate = Networks(config), RateModel(config)
    with torch.no_grad():
        for p in networks.parameters():
            if p.ndim == 4 and not p.any():
                p.normal_(0, 0.02)
        networks.hyper_analysis.layers[-1].weight.mul_(80)
        for layer in networks.hyper_synthesis.layers:
            layer.weight.mul_(2)
        for name, p in networks.named_parameters():  # else λ, ρ and σ reach no block
            if not p.any() and ("modulation" in name or "embed_rho" in name):
                p.normal_(0, 0.1)
    write_checkpoints(networks, rate, root / "compact-x", {"steps": "0"}, {lam: 1.0 for lam in config.ladder})
    return root


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `write_tiny_weights` makes."""
    return write_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> Checkpoint:
    """The tiny model, on the CPU in float32."""
    return load_model(tiny_weights, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def photograph() -> NDArray[np.uint8]:
    """A real picture, uint8 (64, 96, 3): a piece of scikit-image's astronaut."""
    from skimage import data

    picture: NDArray[np.uint8] = data.astronaut()[0:128:2, 160:352:2]
    return picture


@pytest.fixture
def surroundings(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and the tiny model as the weights that ship."""
    monkeypatch.setenv("CDCODEC_WEIGHTS", str(tiny_weights))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(data, name)()).resize((160, 128)).save(folder / f"{name}.png")
    return folder
