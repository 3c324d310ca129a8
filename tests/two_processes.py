"""One of two processes of test_train.py: a joint step on its half of the batch; rank 0 saves the shared gradients."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from short_run import CPU, RECIPE

from cdcodec.lab.data import Photographs
from cdcodec.lab.objective import Phase
from cdcodec.lab.trainer import Trainer
from cdcodec.lab.world import World

if __name__ == "__main__":
    images, out = map(Path, sys.argv[1:])
    recipe = dataclasses.replace(RECIPE, clip=1e9, phases=(Phase("joint", 1, 64, 8),))
    trainer = Trainer(recipe, Photographs(images, CPU, 64), CPU, World.join(CPU))
    trainer.step()
    if trainer.world.rank == 0:
        torch.save([p.grad for p in trainer.parameters if p.grad is not None], out / "gradients.pt")
    torch.distributed.destroy_process_group()
