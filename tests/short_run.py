"""A short training run of the tiny model, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch

from cdcodec.lab.data import Photographs
from cdcodec.lab.objective import Phase
from cdcodec.lab.recipe import Recipe
from cdcodec.lab.trainer import Trainer
from cdcodec.lab.world import World

CPU = torch.device("cpu")
RECIPE = Recipe(
    preset="tiny-x",
    warmup=1,
    phases=(Phase("autoencoder", 2, 64, 8), Phase("joint", 2, 64, 8)),
)


def trainer(folder: Path, recipe: Recipe = RECIPE) -> Trainer:
    return Trainer(recipe, Photographs(folder, CPU, 64), CPU, World())
