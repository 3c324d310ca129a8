"""`cdcodec train`: one resumable loop for a laptop, a GPU, or several processes under torchrun."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cdcodec import files
from cdcodec.device import pick_device, pick_dtype
from cdcodec.errors import TrainingError
from cdcodec.lab.data import Photographs
from cdcodec.lab.log import RunLog
from cdcodec.lab.recipe import Recipe, parse_recipe
from cdcodec.lab.state import STATE, load_state, save_state
from cdcodec.lab.trainer import Trainer
from cdcodec.lab.validate import Validation
from cdcodec.lab.world import World

LOG_EVERY, LOOK_SECONDS = 50, 60.0
"""Steps from one line of the log to the next, and on a CPU seconds at most."""
SAVE_SECONDS, VALIDATE_SECONDS = 300.0, 900.0
"""From one saved state, and from one validation, to the next, at least."""


def train(
    images: Path,
    run: Path,
    recipe: Recipe | None,
    *,
    validation: Path | None = None,
    start: dict[str, Tensor] | None = None,
    trained: int = 0,
    device: str = "auto",
    precision: str = "auto",
    graph: bool = True,
    metric_weights: Path | None = None,
    minutes: float | None = None,
    quiet: bool = False,
) -> None:
    """Trains in the folder `run`, going on there if it holds a state, until the recipe's last step or `minutes`.

    recipe None takes the run's own. start, trained: as of `Trainer.start_from`. graph: the step becomes one CUDA
    graph, where a GPU is one process's own.
    Raises TrainingError, WeightsError; Ctrl-C and SIGTERM save the state first.
    """
    place = pick_device(device)
    world = World.join(place)
    if world.size > 1 and place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    state = load_state(run) if (run / STATE).exists() else None
    if recipe is None:
        if state is None:
            raise TrainingError(f"{run} holds no training run to go on with: name a recipe")
        recipe = parse_recipe(state["recipe"], str(run / STATE))
    for phase in recipe.phases:
        if phase.batch % (4 * world.size):
            raise TrainingError(f"a batch of {phase.batch} does not split into fours over {world.size} processes")
    photographs = Photographs(images, place, max(phase.crop for phase in recipe.phases), without=run)
    dtype = pick_dtype(precision, place)
    if place.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    captured = place.type == "cuda" and world.size == 1 and graph
    trainer = Trainer(
        recipe, photographs, place, world, dtype=dtype, graph=captured, metric_weights=metric_weights
    )
    if state is not None:
        trainer.load(state)
    elif start is not None:
        trainer.start_from(start, trained)
    check = Validation(validation, metric_weights, dtype) if validation and world.rank == 0 else None
    run.mkdir(parents=True, exist_ok=True)
    log = RunLog(run, recipe.steps, trainer.step_count, quiet) if world.rank == 0 else None
    if log is not None:
        files.write(str(run / "recipe.json"), json.dumps(recipe.to_dict(), indent=1).encode(), force=True)
        log.note(f"{photographs}, {photographs.skipped} left out; {place}, {dtype}, {world.size} process(es)")
        if state is not None and state["data"] != str(photographs):
            log.note(f"the run had {state['data']} before: its next steps are others than they would have been")
    _loop(trainer, log, check, run, minutes)
    if world.size > 1:
        dist.destroy_process_group()


def _loop(
    trainer: Trainer,
    log: RunLog | None,
    check: Validation | None,
    run: Path,
    minutes: float | None,
) -> None:
    began = saved = validated = looked = time.monotonic()
    alone = trainer.world.size == 1 and trainer.device.type == "cpu"  # to look at the clock costs nothing
    seen: dict[str, list[Tensor]] = {}  # what the steps measured since the last line of the log, all of one phase
    ends = set(itertools.accumulate(phase.steps for phase in trainer.recipe.phases))

    def save() -> None:
        if log is not None and not trainer.updating:
            save_state(run, trainer.state())

    with _interruptible(trainer) as leave_if_told:
        try:
            while trainer.step_count < trainer.recipe.steps:
                _, phase, _ = trainer.recipe.phase_at(trainer.step_count)
                for name, value in trainer.step().items():
                    seen.setdefault(name, []).append(value)
                leave_if_told()
                late = alone and time.monotonic() - looked > LOOK_SECONDS
                if late or trainer.step_count % LOG_EVERY == 0 or trainer.step_count in ends:
                    means = {name: torch.stack(values).mean() for name, values in seen.items()}
                    trainer.world.average(list(means.values()))
                    trainer.look(seen["gradient"])
                    if log is not None:
                        log.step(trainer.step_count, phase, {name: mean.item() for name, mean in means.items()})
                    seen = {}
                    now = looked = time.monotonic()
                    if now - saved > SAVE_SECONDS:
                        save()
                        saved = time.monotonic()
                    if check is not None and log is not None and now - validated > VALIDATE_SECONDS:
                        log.validation(trainer.step_count, check(trainer.averaged(), run, trainer.step_count))
                        validated = time.monotonic()
                    spent = torch.tensor((now - began) / 60, device=trainer.device)
                    trainer.world.average([spent])  # so that all processes stop at the same step
                    if minutes is not None and spent.item() > minutes:
                        break
            if check is not None and log is not None:
                log.validation(trainer.step_count, check(trainer.averaged(), run, trainer.step_count))
        finally:
            save()
            if log is not None:
                log.close()


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Within it Ctrl-C raises KeyboardInterrupt and SIGTERM SystemExit at once, but never while a step updates weights:
    then the function it gives raises, to be called after each step."""
    waiting: list[int] = []

    def leave(number: int, _: object = None) -> None:
        if trainer.updating:
            waiting.append(number)
        elif number == signal.SIGTERM:
            sys.exit(143)
        else:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: leave(waiting[0]) if waiting else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
