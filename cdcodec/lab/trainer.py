"""Networks, entropy models and optimisers of one run, and the step that trains them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdcodec.errors import TrainingError
from cdcodec.lab import draws
from cdcodec.lab.critic import Critic
from cdcodec.lab.data import Photographs
from cdcodec.lab.graph import Graphed
from cdcodec.lab.metrics import load_lpips
from cdcodec.lab.objective import Objective, Phase
from cdcodec.lab.optim import Muon, Split
from cdcodec.lab.rate import RateModel
from cdcodec.lab.recipe import Recipe
from cdcodec.lab.world import World
from cdcodec.nets.networks import Networks

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
    gives exactly the next ones (on a CPU, with the same number of threads; on a GPU up to float rounding).
    """

    def __init__(
        self,
        recipe: Recipe,
        photographs: Photographs,
        device: torch.device,
        world: World,
        *,
        dtype: torch.dtype = torch.float32,
        graph: bool = False,
        metric_weights: Path | None = None,
    ) -> None:
        self.recipe, self.photographs, self.device, self.world = recipe, photographs, device, world
        self.dtype, self.graph = dtype, graph
        torch.manual_seed(recipe.seed)
        self.networks = Networks(recipe.model).to(device).to(memory_format=torch.channels_last)
        self.rate = RateModel(recipe.model).to(device)
        named = [*self.networks.named_parameters(), *self.rate.named_parameters()]
        named = [(name, p) for name, p in named if p.requires_grad]
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self.average = [p.detach().clone() for p in self.parameters]
        split = Split.of(named)
        self.optimisers: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (Muon(split.muon, self._rate(recipe.lr_muon), dtype), recipe.lr_muon),
            (self._adam(split.adam, recipe.lr_adam), recipe.lr_adam),
            (self._adam(split.far, recipe.lr_far), recipe.lr_far),
        )
        self._ramp, self._fresh = torch.ones((), device=device), torch.ones((), device=device)
        self.step_count = 0
        self.trained = 0  # steps behind the weights that it began with
        self.updating = False  # while True, the state lies between two steps
        self.ramp = True
        self._phase = -1
        self.critic: Critic | None = None
        if any(phase.critic for phase in recipe.phases):
            self.critic = Critic().to(device).to(memory_format=torch.channels_last)
            lr = self._rate(recipe.lr_critic)
            own = self.critic.parameters()
            self._critic_optimiser = torch.optim.Adam(own, lr, betas=(0.5, 0.95), capturable=graph)
        self._lpips: nn.Module | None = None
        if any(phase.perceptual for phase in recipe.phases):
            self._lpips = load_lpips(recipe.lpips, metric_weights)
            self._lpips.to(device, dtype).to(memory_format=torch.channels_last)

    def _rate(self, value: float) -> Any:
        """A rate of learning; of a graph's optimisers a tensor, which can be told anew."""
        return torch.tensor(value, device=self.device) if self.graph else value

    def _adam(self, parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        rate, betas = self._rate(lr), (0.9, 0.99)
        return torch.optim.AdamW(parameters, rate, betas=betas, weight_decay=0.0, capturable=self.graph)

    def _enter(self, index: int, phase: Phase) -> None:
        """Prepares the step of a phase; what is frozen in it gets no gradient."""
        trained = TRAINED.get(phase.kind, ("",))
        for name, p in zip(self.names, self.parameters, strict=True):
            p.requires_grad_(name.startswith(trained))
        self.objective = Objective(
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
        share = phase.batch // self.world.size
        samples = torch.arange(share, device=self.device) + self.world.rank * share
        # Every fourth sample is of one kind (Objective), wherever it is computed; equal kinds lie together.
        self._samples = samples.view(-1, 4).T.reshape(-1)
        self._key = torch.zeros_like(self._samples)
        compute = partial(self._compute, phase)
        self._run = Graphed(compute) if self.graph else compute
        self._phase = index

    def step(self) -> dict[str, Tensor]:
        """One optimiser step over all processes; returns the metrics of this process's share as 0-dim tensors."""
        count = self.step_count
        index, phase, own = self.recipe.phase_at(count)
        if own == 0:
            _fill(self.parameters, self.average)
        if index != self._phase:
            self._enter(index, phase)
        self._key.copy_(draws.keys(self.recipe.seed, count, self._samples))
        self._ramp.fill_(self.recipe.ramp_at(count) if self.ramp else 1.0)
        self._fresh.fill_(self.recipe.fresh_at(count))
        for optimiser, peak in self.optimisers:
            rate = peak * self.recipe.rate_at(count)
            for group in optimiser.param_groups:
                group["lr"] = group["lr"].fill_(rate) if self.graph else rate
        self.updating = isinstance(self._run, Graphed) and self._run.captured  # else from where it does
        metrics = self._run()
        self.step_count += 1
        self.updating = False
        return metrics

    def _compute(self, phase: Phase) -> dict[str, Tensor]:
        """What of a step is done with tensors alone, and can be a graph."""
        x = self.photographs.crops(self._key, phase.crop)
        loss, metrics = self.objective(x, self._key, self._ramp)
        judge = list(self.critic.parameters()) if self.critic is not None else []
        for p in self.parameters + judge:
            p.grad = None
        loss.backward()
        self.world.average([p.grad for p in self.parameters + judge if p.grad is not None])
        metrics["gradient"] = self._clip([p for p in self.parameters if p.grad is not None], judge)
        self.updating = True
        for optimiser, _ in self.optimisers:
            optimiser.step()
        if self.critic is not None and phase.critic:
            self._critic_optimiser.step()
            self.critic.age += 1
        apart = torch._foreach_sub([p.detach() for p in self.parameters], self.average)
        torch._foreach_mul_(apart, self._fresh)
        torch._foreach_add_(self.average, apart)
        return metrics

    def _clip(self, parameters: Sequence[Tensor], judge: Sequence[Tensor]) -> Tensor:
        """Scales the gradients to the recipe's largest norm and gives the norm they had. Raises TrainingError where it
        is not finite; a graph cannot: there all gradients, those of the critic too, become 0 (see `look`)."""
        if not self.graph:
            try:
                return nn.utils.clip_grad_norm_(parameters, self.recipe.clip, error_if_nonfinite=True)
            except RuntimeError:
                step = self.step_count
                raise TrainingError(f"the gradient is not finite at step {step}; the state before it is kept") from None
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        for p in (*parameters, *judge):
            if p.grad is not None:
                p.grad.copy_(torch.where(norm.isfinite(), p.grad, 0))
        return norm

    def look(self, norms: Sequence[Tensor]) -> None:
        """Raises TrainingError where one of the gradients' norms of the last steps, 0-dim, was not finite; then the
        present state is not one to save."""
        if norms and not torch.stack(list(norms)).isfinite().all():
            self.updating = True
            step = self.step_count
            raise TrainingError(f"the gradient was not finite shortly before step {step}; the last saved state is kept")

    def averaged(self) -> tuple[Networks, RateModel]:
        """Copies of networks and entropy models with the averaged weights, frozen, in evaluation mode."""
        return averaged_models(self.recipe, self.average, self.device)

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to go on exactly here; tensors and plain values only."""
        return {
            "recipe": self.recipe.to_dict(),
            "step": self.step_count,
            "trained": self.trained,
            "data": str(self.photographs),
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
                self._load_moments(optimiser, moments)
            if self.critic is not None and state.get("critic"):
                self.critic.load_state_dict(state["critic"][0])
                self._load_moments(self._critic_optimiser, state["critic"][1])
            self.step_count, self.ramp = int(state["step"]), bool(state["ramp"])
            self.trained = int(state["trained"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise TrainingError(f"the saved state is of another architecture or damaged: {error}") from None

    def _load_moments(self, optimiser: torch.optim.Optimizer, moments: dict[str, Any]) -> None:
        """What an optimiser remembers; how it works here (`graph`) stays, wherever it was saved."""
        kept = {"lr", "capturable"}
        own = [{key: group[key] for key in kept & set(group)} for group in optimiser.param_groups]
        optimiser.load_state_dict(moments)
        for group, settings in zip(optimiser.param_groups, own, strict=True):
            group.update(settings)
        for remembered in optimiser.state.values():
            if "step" in remembered:
                remembered["step"] = remembered["step"].to(self.device if self.graph else "cpu")

    def start_from(self, floats: dict[str, Tensor], trained: int = 0) -> None:
        """Begins from exported float tensors (networks and, under rate. and critic., the entropy models and, where a
        phase has one, the critic) instead of at random.

        trained: the steps that they have behind them, for the record. Raises TrainingError if they do not fit.
        """
        parts: dict[str, dict[str, Tensor]] = {"": {}, "rate.": {}, "critic.": {}}
        for name, value in floats.items():
            prefix = next((part for part in ("rate.", "critic.") if name.startswith(part)), "")
            parts[prefix][name.removeprefix(prefix)] = value.float()
        try:
            for prefix, module in (("", self.networks), ("rate.", self.rate), ("critic.", self.critic)):
                if module is not None:
                    module.load_state_dict({**module.state_dict(), **parts[prefix]})
        except RuntimeError as error:
            raise TrainingError(f"these weights do not fit the recipe's preset: {str(error).splitlines()[0]}") from None
        _fill(self.average, [p.detach() for p in self.parameters])
        self.ramp, self.trained = False, trained


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
