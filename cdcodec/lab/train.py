"""`cdcodec train`: one resumable loop for a laptop, a GPU, or several processes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdcodec import files
from cdcodec.device import pick_device, pick_dtype
from cdcodec.errors import TrainingError
from cdcodec.lab import draws
from cdcodec.lab.critic import Critic
from cdcodec.lab.data import Photographs
from cdcodec.lab.log import RunLog
from cdcodec.lab.metrics import load_lpips
from cdcodec.lab.objective import Objective, Phase
from cdcodec.lab.optim import Muon, Split
from cdcodec.lab.rate import RateModel
from cdcodec.lab.recipe import Recipe, parse_recipe
from cdcodec.lab.validate import Validation
from cdcodec.lab.world import World
from cdcodec.nets.networks import Networks

STATE = "state.pt"
KEPT = {"recipe", "step", "trained", "data", "ramp", "parameters", "average", "optimisers"}
"""What every state has in it; a critic only some."""
LOG_EVERY = 50
TRAINED = {
    "denoiser": ("unet.",),
    "noise": ("unet.",),
    "decoder": ("synthesis.", "ladder.log_variance"),
    "smoothing": ("synthesis.smoothing.", "ladder.log_variance"),
    "entropy": ("hyper_analysis.", "hyper_synthesis.", "bottleneck."),
}
"""Kinds of phases that train a part of the parameters, by the beginnings of their names; the rest is frozen then."""


class Trainer:
    """Networks, entropy models, optimisers and averaged weights of one run, and its step.

    A step is a pure function of the state and the step's number: `state()` after n steps, loaded into a new Trainer,
    gives exactly the next ones (on the same kind of device and number of threads).
    """

    def __init__(
        self,
        recipe: Recipe,
        photographs: Photographs,
        device: torch.device,
        world: World,
        *,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        metric_weights: Path | None = None,
    ) -> None:
        self.recipe, self.photographs, self.device, self.world = recipe, photographs, device, world
        self.dtype, self.compile = dtype, compile
        torch.manual_seed(recipe.seed)
        self.networks = Networks(recipe.model).to(device).to(memory_format=torch.channels_last)
        self.rate = RateModel(recipe.model).to(device)
        named = [*self.networks.named_parameters(), *self.rate.named_parameters()]
        named = [(name, p) for name, p in named if p.requires_grad]
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self.average = [p.detach().clone() for p in self.parameters]
        split = Split.of(named)
        self.optimisers: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (Muon(split.muon, recipe.lr_muon, dtype), recipe.lr_muon),
            (_adam(split.adam, recipe.lr_adam), recipe.lr_adam),
            (_adam(split.far, recipe.lr_far), recipe.lr_far),
        )
        self.step_count = 0
        self.trained = 0  # steps behind the weights that it began with
        self.updating = False  # while True, the state lies between two steps
        self.ramp = True
        self._phase = -1
        self.critic: Critic | None = None
        if any(phase.critic for phase in recipe.phases):
            self.critic = Critic().to(device).to(memory_format=torch.channels_last)
            self._critic_optimiser = torch.optim.Adam(self.critic.parameters(), recipe.lr_critic, betas=(0.5, 0.95))
        self._lpips: nn.Module | None = None
        if any(phase.perceptual for phase in recipe.phases):
            self._lpips = load_lpips(recipe.lpips, metric_weights)
            self._lpips.to(device, dtype).to(memory_format=torch.channels_last)

    def _enter(self, index: int, phase: Phase) -> None:
        """Prepares the objective of a phase; what is frozen in it gets no gradient."""
        trained = TRAINED.get(phase.kind, ("",))
        for name, p in zip(self.names, self.parameters, strict=True):
            p.requires_grad_(name.startswith(trained))
        objective = Objective(
            self.networks,
            self.rate,
            lpips=self._lpips if phase.perceptual else None,
            kind=phase.kind,
            head_lpips=phase.lpips,
            critic=self.critic,
            critic_share=phase.critic,
            weights=self.recipe.weights,
            dtype=self.dtype,
        )
        self.objective = torch.compile(objective, dynamic=False) if self.compile else objective
        self._phase = index

    def step(self) -> dict[str, Tensor]:
        """One optimiser step over all processes; returns the metrics of this process's share as 0-dim tensors."""
        index, phase = self.recipe.phase_at(self.step_count)
        if index != self._phase:
            self._enter(index, phase)
        share = phase.batch // self.world.size
        samples = torch.arange(share, device=self.device) + self.world.rank * share
        # Every fourth sample is of one kind (Objective), wherever it is computed; equal kinds lie together.
        samples = samples.view(-1, 4).T.reshape(-1)
        key = draws.keys(self.recipe.seed, self.step_count, samples)
        x = self.photographs.crops(key, phase.crop)
        ramp = torch.tensor(self.recipe.ramp_at(self.step_count) if self.ramp else 1.0, device=self.device)
        loss, metrics = self.objective(x, key, ramp)
        judge = list(self.critic.parameters()) if self.critic is not None else []
        for p in self.parameters + judge:
            p.grad = None
        loss.backward()
        self.world.average([p.grad for p in self.parameters + judge if p.grad is not None])
        metrics["gradient"] = self._clip([p for p in self.parameters if p.grad is not None])
        self.updating = True
        for optimiser, peak in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * self.recipe.rate_at(self.step_count)
            optimiser.step()
        if self.critic is not None and phase.critic:
            self._critic_optimiser.param_groups[0]["lr"] = self.recipe.lr_critic
            self._critic_optimiser.step()
            self.critic.age += 1
        self.step_count += 1
        decay = min(self.recipe.ema, (1 + self.step_count) / (10 + self.step_count))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.updating = False
        return metrics

    def _clip(self, parameters: Sequence[Tensor]) -> Tensor:
        """Scales the gradients to the recipe's largest norm and gives the norm they had. Raises TrainingError."""
        try:
            return nn.utils.clip_grad_norm_(parameters, self.recipe.clip, error_if_nonfinite=True)
        except RuntimeError:
            step = self.step_count
            raise TrainingError(f"the gradient is not finite at step {step}; the state before it is kept") from None

    def averaged(self) -> tuple[Networks, RateModel]:
        """Copies of networks and entropy models with the averaged weights, frozen, in evaluation mode."""
        return averaged_models(self.recipe, self.average, self.device)

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here; tensors and plain values only."""
        return {
            "recipe": self.recipe.to_dict(),
            "step": self.step_count,
            "trained": self.trained,
            "data": f"{self.photographs.count} photographs, {self.photographs.pixels_total / 1e6:.0f} megapixels",
            "ramp": self.ramp,
            "parameters": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser, _ in self.optimisers],
            "critic": self.critic and [self.critic.state_dict(), self._critic_optimiser.state_dict()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a `state`; its recipe may differ in rates and steps, not in the architecture."""
        try:
            _fill(self.parameters + self.average, state["parameters"] + state["average"])
            for (optimiser, _), moments in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(moments)
            if self.critic is not None and state.get("critic"):
                self.critic.load_state_dict(state["critic"][0])
                self._critic_optimiser.load_state_dict(state["critic"][1])
            self.step_count, self.ramp = int(state["step"]), bool(state["ramp"])
            self.trained = int(state["trained"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise TrainingError(f"the saved state is of another architecture or damaged: {error}") from None

    def start_from(self, floats: dict[str, Tensor], trained: int = 0) -> None:
        """Begins from exported float tensors (networks and, under rate., the entropy models) instead of at random.

        trained: the steps that they have behind them, for the record. Raises TrainingError if they do not fit.
        """
        rate = {name.removeprefix("rate."): value for name, value in floats.items() if name.startswith("rate.")}
        nets = {name: value for name, value in floats.items() if not name.startswith("rate.")}
        try:
            self.networks.load_state_dict({**self.networks.state_dict(), **{n: v.float() for n, v in nets.items()}})
            self.rate.load_state_dict({**self.rate.state_dict(), **{n: v.float() for n, v in rate.items()}})
        except RuntimeError as error:
            raise TrainingError(f"these weights do not fit the recipe's preset: {str(error).splitlines()[0]}") from None
        self.average = [p.detach().clone() for p in self.parameters]
        self.ramp, self.trained = False, trained


def _adam(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99), weight_decay=0.0)


@torch.no_grad()
def _fill(targets: list[Any], values: list[Tensor]) -> None:
    """Copies values into the targets. Raises ValueError unless they are as many and of the same shapes."""
    for target, value in zip(targets, values, strict=True):
        if target.shape != value.shape:
            raise ValueError(f"a tensor of {tuple(value.shape)} where {tuple(target.shape)} is expected")
        target.copy_(value)


def averaged_models(recipe: Recipe, average: list[Tensor], device: torch.device) -> tuple[Networks, RateModel]:
    """Networks and entropy models holding the averaged weights of a Trainer, frozen, in evaluation mode.

    Raises TrainingError for averages of another architecture.
    """
    networks, rate = Networks(recipe.model).to(device), RateModel(recipe.model).to(device)
    targets = [p for p in (*networks.parameters(), *rate.parameters()) if p.requires_grad]
    try:
        _fill(targets, average)
    except ValueError as error:
        raise TrainingError(f"the run's weights are not of the present {recipe.preset}: {error}") from None
    return networks.eval().requires_grad_(False), rate.eval().requires_grad_(False)


def load_state(run: Path) -> dict[str, Any]:
    """The saved state of a run folder (weights_only: nothing is executed). Raises TrainingError."""
    try:
        state: dict[str, Any] = torch.load(run / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{run} holds no training run ({STATE} is missing)") from None
    except Exception as error:
        raise TrainingError(f"{run / STATE} cannot be read: {error}") from None
    absent = KEPT - set(state if isinstance(state, dict) else ())
    if absent:
        raise TrainingError(f"{run / STATE} is not the state of a training run: it has no {min(absent)}")
    return state


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Written beside and renamed: a run that is killed, or fills the disk, keeps its last whole state.

    Raises TrainingError.
    """
    beside = run / (STATE + ".part")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
        os.replace(beside, run / STATE)
    except (OSError, RuntimeError) as error:  # of a full disk, torch makes a RuntimeError
        beside.unlink(missing_ok=True)
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise TrainingError(f"the state of the run cannot be saved, the last one is kept: {reason}") from None


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
    compile: bool | None = None,
    metric_weights: Path | None = None,
    minutes: float | None = None,
    save_minutes: float = 5.0,
    validate_minutes: float = 15.0,
    quiet: bool = False,
) -> None:
    """Trains in the folder `run`, going on there if it holds a state, until the recipe's last step or `minutes`.

    recipe None takes the run's own. start, trained: as of `Trainer.start_from`. compile: the step; None does on a GPU.
    Raises TrainingError, WeightsError; Ctrl-C and SIGTERM save the state first.
    """
    place = pick_device(device)
    world = World.join(place)
    if world.size > 1 and place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    run.mkdir(parents=True, exist_ok=True)
    state = load_state(run) if (run / STATE).exists() else None
    if recipe is None:
        if state is None:
            raise TrainingError(f"{run} holds no training run to go on with: name a recipe")
        recipe = parse_recipe(state["recipe"], str(run / STATE))
    for phase in recipe.phases:
        if phase.batch % (4 * world.size):
            raise TrainingError(f"a batch of {phase.batch} does not split into fours over {world.size} processes")
    photographs = Photographs(images, place, max(phase.crop for phase in recipe.phases))
    dtype = pick_dtype(precision, place)
    compiled = place.type == "cuda" if compile is None else compile
    trainer = Trainer(
        recipe, photographs, place, world, dtype=dtype, compile=compiled, metric_weights=metric_weights
    )
    if state is not None:
        trainer.load(state)
    elif start is not None:
        trainer.start_from(start, trained)
    check = Validation(validation, metric_weights, dtype) if validation and world.rank == 0 else None
    log = RunLog(run, recipe.steps, trainer.step_count, quiet) if world.rank == 0 else None
    if log is not None:
        files.write(str(run / "recipe.json"), json.dumps(recipe.to_dict(), indent=1).encode(), force=True)
        log.note(f"{photographs.count} pictures, {photographs.pixels_total / 1e6:.0f} megapixels, "
                 f"{photographs.skipped} left out; {place}, {dtype}, {world.size} process(es)")
    _loop(
        trainer, log, check, run, minutes=minutes, save_minutes=save_minutes, validate_minutes=validate_minutes
    )
    if world.size > 1:
        dist.destroy_process_group()


def _loop(
    trainer: Trainer,
    log: RunLog | None,
    check: Validation | None,
    run: Path,
    *,
    minutes: float | None,
    save_minutes: float,
    validate_minutes: float,
) -> None:
    began = saved = validated = time.monotonic()
    seen: dict[str, list[Tensor]] = {}  # what the steps of one phase measured since the last line of the log
    entered = -1

    def save() -> None:
        if log is not None and not trainer.updating:
            save_state(run, trainer.state())

    with _interruptible(trainer) as leave_if_told:
        try:
            while trainer.step_count < trainer.recipe.steps:
                index, phase = trainer.recipe.phase_at(trainer.step_count)
                if index != entered:
                    entered, seen = index, {}
                for name, value in trainer.step().items():
                    seen.setdefault(name, []).append(value)
                leave_if_told()
                if trainer.step_count % LOG_EVERY == 0:
                    means = {name: torch.stack(values).mean() for name, values in seen.items()}
                    trainer.world.average(list(means.values()))
                    if log is not None:
                        log.step(trainer.step_count, phase, {name: mean.item() for name, mean in means.items()})
                    seen = {}
                    now = time.monotonic()
                    if now - saved > 60 * save_minutes:
                        save()
                        saved = time.monotonic()
                    if check is not None and log is not None and now - validated > 60 * validate_minutes:
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
