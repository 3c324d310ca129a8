"""What a model is made of: frozen dataclasses that go to JSON and into every checkpoint, and the named presets."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LADDER = (0.0024, 0.0032, 0.0048, 0.0064, 0.0128, 0.0256, 0.0512, 0.0768)
"""The eight λ of the shipped weights. λ multiplies the rate in the loss: a larger λ means a smaller file."""

DEFAULT_LAMBDA = 0.0128

MAX_PIXELS, MAX_SIDE = 2**28, 2**16
"""Of a picture: pixels, which a caller may raise, and pixels a side."""
MAX_GAMMA = 1000.0
"""Most noise that decoding starts from; already at 10 nothing is left of the picture."""

SMALLEST_TILE = 512
"""Least side in pixels of the tiles that large pictures may be cut into."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one model; stored as JSON in its checkpoints.

    blocks: "compact" for the networks of analysis.py and unet.py, "paper" for those of paper.py.
    unshuffle: side of the pixel blocks that become channels in front of encoder and U-Net.
    stride: side in pixels of the square that one position of y stands for.
    padding: pictures are padded to multiples of this many pixels, itself a multiple of the stride.
    analysis_widths: channels of encoder and context decoder at resolutions 1/unshuffle, half of it, …
    analysis_depth: residual blocks per resolution there.
    smoothing: whether the light head's picture passes a bilateral filter (smoothing.py).
    latent, hyper: channels of y and of z.
    hyper_widths: channels inside the hyper-networks.
    hyper_slope: of the leaky ReLU in the hyper-synthesis, 0 for a plain one.
    hyper_kernel: side of the hyper-synthesis' last kernel, 1 or 3; those before it are 3×3.
    hyper_scale: what the hyper-synthesis puts out, "log" σ or σ itself ("linear").
    groups: the channels at which y is cut into groups, coded one behind the other; () for a single one.
    phases: in how many stages, 1 to 4, the positions of each group are coded.
    stage_width: channels inside the network that tells a stage of y what the stages before it have brought.
    density_weights, density_scales: y given μ and σ is the mixture Σ weight·N(μ, (scale·σ)²) of these.
    unet_widths, unet_depth: like analysis_*, for the denoiser.
    context: channels of the pyramid's finest level, where it is not analysis_widths[0].
    condition: length of the conditioning vector that stands for λ (0: the model knows one λ only).
    embedding: length of the vector that drives scale and shift in the residual blocks.
    parametrisation: what the U-Net predicts: "x" (the picture) or "eps" (the noise).
    schedule: "sigma", continuous and preconditioned; "cosine" or "linear", the authors' of `timesteps` steps.
    clamp: whether every x̂_0 on the way is clamped to [-1, 1].
    exact_encoder: whether the encoder runs in float32 whatever the precision of the rest.
    rho_min, rho_max: ρ that it can be told; equal where it was trained for one and is not told.
    fraction_bits: f, the means of y are integers in units of 1/2^f.
    lambda_scale, lambda_power: of `lambda_eff`, as in training.
    shares: the preset beside it whose weights hold all but the denoiser, or "" where a model is whole.
    steps, gamma, rho: what decoding does by default.
    """

    preset: str = "compact-x"
    blocks: str = "compact"
    unshuffle: int = 4
    stride: int = 16
    padding: int = 16
    analysis_widths: tuple[int, ...] = (96, 160, 256)
    analysis_depth: int = 2
    smoothing: bool = False
    latent: int = 192
    hyper: int = 96
    hyper_widths: tuple[int, ...] = (128, 128)
    hyper_slope: float = 0.0
    hyper_kernel: int = 3
    hyper_scale: str = "log"
    groups: tuple[int, ...] = ()
    phases: tuple[int, ...] = (1,)
    stage_width: int = 96
    density_weights: tuple[float, ...] = (1.0,)
    density_scales: tuple[float, ...] = (1.0,)
    unet_widths: tuple[int, ...] = (48, 96, 192)
    unet_depth: int = 1
    context: int = 0
    condition: int = 32
    embedding: int = 192
    parametrisation: str = "x"
    schedule: str = "sigma"
    timesteps: int = 0
    clamp: bool = False
    exact_encoder: bool = False
    ladder: tuple[float, ...] = LADDER
    rho_min: float = 0.0
    rho_max: float = 0.9
    fraction_bits: int = 8
    lambda_scale: float = 12.7
    lambda_power: float = 1.365
    shares: str = ""
    steps: int = 17
    gamma: float = 0.0
    rho: float = 0.9

    def __post_init__(self) -> None:
        """Raises ValueError for what no network can be built of: checkpoints may come from anyone."""
        widths = (*self.analysis_widths, *self.unet_widths, *self.hyper_widths, self.latent, self.hyper)
        sound = {
            "blocks": self.blocks in ("compact", "paper"),
            "parametrisation": self.parametrisation in ("x", "eps"),
            "schedule": self.schedule == "sigma" or (self.schedule in ("cosine", "linear") and self.timesteps >= 32),
            "hyper_scale": self.hyper_scale in ("log", "linear"),
            "ladder": bool(self.ladder) and all(0 < a < b for a, b in pairwise((*self.ladder, math.inf))),
            "stride": 1 <= self.unshuffle <= self.stride <= 32 and self.stride <= self.padding <= 1024
            and self.padding % self.stride == 0
            and self.stride == self.unshuffle << len(self.analysis_widths) - (self.blocks == "compact"),
            "widths": all(isinstance(width, int) and 1 <= width <= 2048 for width in widths),
            "levels": 1 <= len(self.analysis_widths) <= 8 and 1 <= len(self.unet_widths) <= 8
            and (self.blocks == "paper" or len(self.unet_widths) == len(self.analysis_widths)),
            "hyper_widths": len(self.hyper_widths) == 2,
            "hyper_kernel": self.hyper_kernel in (1, 3),
            "groups": all(isinstance(end, int) for end in self.groups) and len(self.groups) <= 16
            and all(a < b for a, b in pairwise((0, *self.groups, self.latent))),
            "phases": len(self.phases) == len(self.groups) + 1 and all(n in (1, 2, 3, 4) for n in self.phases),
            "stage_width": 1 <= self.stage_width <= 2048,
            "density": 1 <= len(self.density_weights) == len(self.density_scales) <= 8
            and all(0 < share <= 1 for share in self.density_weights)
            and abs(sum(self.density_weights) - 1) < 1e-6
            and all(0.125 <= scale <= 8 for scale in self.density_scales),
            "depth": 1 <= self.analysis_depth <= 16 and 1 <= self.unet_depth <= 16,
            "conditioning": min(self.condition, self.context) >= 0 and 1 <= self.embedding <= 2048
            and max(self.condition, self.context) <= 2048 and 0 <= self.timesteps < 2**20,
            "rho": 0 <= self.rho_min <= self.rho <= self.rho_max <= 1,
            "lambda_eff": 0 < self.lambda_scale < 1e6 and 0 <= self.lambda_power <= 8,
            "fraction_bits": 0 <= self.fraction_bits <= 15,
            "steps": self.steps >= 0 and 0 <= self.gamma <= MAX_GAMMA,
        }
        wrong = ", ".join(name for name, right in sound.items() if not right)
        if wrong:
            raise ValueError(f"ModelConfig: {wrong} out of range")

    def lambda_eff(self, lam: float) -> float:
        """What multiplied the rate in training: lambda_scale·λ^lambda_power."""
        return self.lambda_scale * float(lam**self.lambda_power)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Raises ValueError on unknown fields, on values of the wrong kind and on those out of range."""
        config: ModelConfig = from_dict(cls, json.loads(text))
        return config


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A frozen dataclass from JSON-like values: unknown names and wrong kinds raise ValueError; lists become tuples."""
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__}: expected an object, got {type(values).__name__}")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; fields: {', '.join(sorted(defaults))}")
    checked: dict[str, Any] = {}
    for name, given in values.items():
        default, value = defaults[name], given
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        kinds = {type(part) for part in default} if isinstance(default, tuple) and default else set()
        alike = not kinds or (isinstance(value, tuple) and {type(part) for part in value} <= kinds)
        if default is not dataclasses.MISSING and (type(value) is not type(default) or not alike):
            raise ValueError(f"{cls.__name__}.{name}: expected {type(default).__name__}, got {value!r}")
        checked[name] = value
    return cls(**checked)


PAPER_X = ModelConfig(
    preset="paper-x",
    blocks="paper",
    unshuffle=1,
    padding=64,
    analysis_widths=(64, 128, 192, 256),
    analysis_depth=1,
    latent=256,
    hyper=256,
    hyper_widths=(256, 256),
    hyper_slope=0.2,
    hyper_scale="linear",
    unet_widths=(64, 128, 192, 256, 320, 384),
    context=64,
    condition=0,
    embedding=64,
    schedule="cosine",
    timesteps=8193,
    clamp=True,
    exact_encoder=True,
    ladder=(0.0512,),
    rho_min=0.9,
    fraction_bits=14,
    gamma=0.8,
)
"""The authors' x-parametrised model; ladder and ρ are those of the checkpoint imported."""

PAPER_EPS = dataclasses.replace(
    PAPER_X,
    preset="paper-eps",
    context=3,
    parametrisation="eps",
    schedule="linear",
    timesteps=20000,
    clamp=False,
    ladder=(0.1024,),
    steps=200,
)
"""Their ε-parametrised model."""

HEAVY_TAILS: dict[str, Any] = {"density_weights": (0.72, 0.28), "density_scales": (0.72, 1.46)}
"""Fitted to what compact-x, trained for one Gaussian, makes of the training photographs: (y − μ)/σ has a kurtosis of 4
to 7, and with these two of them its rate is 1.5 (largest λ) to 3 % (smallest) lower."""

COMPACT_X = ModelConfig(
    analysis_depth=3, smoothing=True, hyper_kernel=1, groups=(12, 36, 96), phases=(3, 2, 1, 1), steps=1, **HEAVY_TAILS
)
"""The codec that ships."""

COMPACT_EPS = dataclasses.replace(
    COMPACT_X,
    preset="compact-eps",
    parametrisation="eps",
    shares="compact-x",
    rho_max=0.0,
    steps=65,
    gamma=1.0,
    rho=0.0,
)
"""Another denoiser for its files."""

PRESETS: dict[str, ModelConfig] = {
    "compact-x": COMPACT_X,
    "compact-eps": COMPACT_EPS,
    "paper-x": PAPER_X,
    "paper-eps": PAPER_EPS,
    "tiny-x": ModelConfig(
        preset="tiny-x",
        analysis_widths=(16, 16, 24),
        analysis_depth=1,
        latent=16,
        hyper=8,
        hyper_widths=(16, 16),
        groups=(4, 8),
        phases=(4, 2, 1),
        stage_width=8,
        **HEAVY_TAILS,
        unet_widths=(16, 16, 24),
        unet_depth=1,
        condition=8,
        embedding=16,
    ),
}
"""Named architectures. compact-eps is another denoiser for the files of compact-x; tiny-x is for tests and for trying
the training out."""
