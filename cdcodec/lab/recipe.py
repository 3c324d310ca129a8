"""A training recipe: everything that decides what a run computes, from a TOML file, stored with the run."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcodec.config import PRESETS, ModelConfig, from_dict
from cdcodec.errors import TrainingError
from cdcodec.lab.metrics import BACKBONES
from cdcodec.lab.objective import Phase, Weights

KINDS = ("autoencoder", "joint", "perceptual", "denoiser", "noise", "entropy", "decoder", "smoothing")
FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """preset: which architecture. seed: of every random draw and of the initial weights.

    lr_muon, lr_adam, lr_far: peak learning rates (optim.Split). lr_critic: the critic's, constant.
    warmup: steps of linear rise in each phase; a phase begins with the averaged weights of the one before.
    ramp: share of the first phase over which λ rises from zero (0 when training goes on from weights).
    ema: decay of the averaged weights. clip: largest gradient norm. lpips: "squeeze", "alex" or "vgg", the network of
    the perceptual phases.
    """

    preset: str = "compact-x"
    seed: int = 1
    lr_muon: float = 0.02
    lr_adam: float = 0.001
    lr_far: float = 0.01
    lr_critic: float = 0.001
    warmup: int = 200
    ramp: float = 0.15
    ema: float = 0.999
    clip: float = 5.0
    lpips: str = "squeeze"
    weights: Weights = field(default_factory=Weights)
    phases: tuple[Phase, ...] = (Phase(),)

    @property
    def model(self) -> ModelConfig:
        return PRESETS[self.preset]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[int, Phase, int]:
        """Index and phase that step 0 ≤ step < steps belongs to, and how many steps of the phase lie before it."""
        for i, phase in enumerate(self.phases):
            if step < phase.steps:
                return i, phase, step
            step -= phase.steps
        raise IndexError(step)

    def rate_at(self, step: int) -> float:
        """Learning rate at a step as a share of its peak: in each phase linear warm-up, constant, linear decay."""
        _, phase, own = self.phase_at(step)
        left = (phase.steps - own) / max(1.0, phase.decay * phase.steps)
        return phase.rate * min(1.0, (own + 1) / max(1, self.warmup), max(0.01, left))

    def fresh_at(self, step: int) -> float:
        """The share of a step's weights in the averages: 1 - ema, and more while the phase is young: they are of its
        last tenth or less."""
        _, _, own = self.phase_at(step)
        return 1 - min(self.ema, (2 + own) / (11 + own))

    def ramp_at(self, step: int) -> float:
        """Share of λ at a step."""
        return min(1.0, (step + 1) / max(1.0, self.ramp * self.phases[0].steps))

    def resized(self, scale: float = 1.0, batch: int | None = None) -> Recipe:
        """The same with `scale` times the steps of every phase, warm-up as it is, and `batch` crops a step.

        Raises TrainingError for a batch that no phase can have.
        """
        phases = [
            dataclasses.replace(phase, steps=max(1, round(scale * phase.steps)), batch=batch or phase.batch)
            for phase in self.phases
        ]
        changed = dataclasses.replace(self, phases=tuple(phases))
        return parse_recipe(changed.to_dict(), f"a batch of {batch}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by the name of one that comes with cdcodec, or from a TOML file. Raises TrainingError."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise TrainingError(f"no recipe {str(name)!r}: give a TOML file or one of {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not a TOML recipe: {error}") from None
    return parse_recipe(values, str(path))


def parse_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Checks names, kinds and ranges; raises TrainingError naming the file."""
    try:
        values = dict(values)
        values["weights"] = from_dict(Weights, values.get("weights", {}))
        values["phases"] = tuple(from_dict(Phase, phase) for phase in values.pop("phases", values.pop("phase", ())))
        recipe: Recipe = from_dict(Recipe, values)
        _check(recipe)
        for phase in recipe.phases:
            _check_phase(phase, recipe)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{origin}: {error}") from None
    return recipe


def _check(recipe: Recipe) -> None:
    """Raises ValueError for what is wrong with a recipe beside its phases."""
    presets = [name for name, config in PRESETS.items() if config.blocks == "compact"]
    weights, rates = recipe.weights, (recipe.lr_muon, recipe.lr_adam, recipe.lr_far, recipe.lr_critic, recipe.clip)
    for sound, text in (
        (recipe.preset in presets, f"unknown preset {recipe.preset!r}; to train there are {_list(presets)}"),
        (recipe.lpips in BACKBONES, f"lpips must be one of {_list(BACKBONES)}"),
        (all(0 < rate < math.inf for rate in rates), "rates of learning and clip must be above 0"),
        (recipe.warmup >= 0 and 0 <= recipe.ramp <= 1, "warmup must be 0 or above, ramp from 0 to 1"),
        (0 <= recipe.seed < 2**63, "the seed must be from 0 to below 2^63"),
        (0 <= recipe.ema < 1, "ema must be from 0 to below 1"),
        (0 < weights.lambda_scale < math.inf, "lambda_scale must be above 0"),
        (0 <= min(weights.kappa, weights.lattice), "kappa and lattice must be 0 or above"),
        (recipe.phases, "no [[phase]]"),
    ):
        if not sound:
            raise ValueError(text)


def _check_phase(phase: Phase, recipe: Recipe) -> None:
    """Raises ValueError for what is wrong with a phase of a recipe that is sound itself."""
    model, large = recipe.model, phase.steps >= 1 and phase.batch >= 4 and phase.crop >= 64
    for sound, text in (
        (phase.kind in KINDS, f"unknown kind of phase {phase.kind!r}: {_list(KINDS)}"),
        (
            (phase.kind == "noise") == (model.parametrisation == "eps"),
            f"a phase of kind {phase.kind!r} does not train {recipe.preset}",
        ),
        (
            phase.kind != "smoothing" or model.smoothing,
            f"{recipe.preset} has no filter for a phase of kind 'smoothing' to train",
        ),
        (phase.rate > 0 and 0 <= phase.decay <= 1, "the rate of a phase must be above 0, its decay from 0 to 1"),
        (phase.lpips >= 0, "the weight of LPIPS must be 0 or above"),
        (
            phase.critic >= 0 and (phase.perceptual or not phase.critic),
            "the critic's share must be 0 or above, and 0 in a phase without LPIPS",
        ),
        (
            large and phase.batch % 4 == 0 and phase.crop % 64 == 0,
            "a phase needs steps ≥ 1, a batch that is a multiple of 4, a crop that is one of 64",
        ),
    ):
        if not sound:
            raise ValueError(text)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
