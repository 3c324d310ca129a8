"""What a model is made of: frozen dataclasses that go to JSON and into every checkpoint, and the named presets."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

LADDER = (0.0024, 0.0032, 0.0048, 0.0064, 0.0128, 0.0256, 0.0512, 0.0768)
"""The eight λ of the shipped weights. λ multiplies the rate in the loss: a larger λ means a smaller file."""

DEFAULT_LAMBDA = 0.0128

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
    latent, hyper: channels of y and of z.
    hyper_widths: channels inside the hyper-networks.
    hyper_slope: of the leaky ReLU in the hyper-synthesis, 0 for a plain one.
    hyper_scale: what the hyper-synthesis puts out, "log" σ or σ itself ("linear").
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
    transform: whether a fixed cosine transform lies under encoder and context decoder (nets/transform.py).
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
    latent: int = 160
    hyper: int = 96
    hyper_widths: tuple[int, ...] = (192, 160)
    hyper_slope: float = 0.0
    hyper_scale: str = "log"
    unet_widths: tuple[int, ...] = (64, 128, 256)
    unet_depth: int = 2
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
    transform: bool = False
    shares: str = ""
    steps: int = 17
    gamma: float = 0.0
    rho: float = 0.9

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Raises ValueError on anything but exactly the known fields with values of the right kind."""
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
        if default is not dataclasses.MISSING and type(value) is not type(default):
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

PRESETS: dict[str, ModelConfig] = {
    "compact-x": ModelConfig(steps=1),
    "compact-dct": ModelConfig(preset="compact-dct", transform=True, latent=192, steps=1),
    "compact-eps": ModelConfig(
        preset="compact-eps", parametrisation="eps", shares="compact-x", rho_max=0.0, steps=65, gamma=1.0, rho=0.0
    ),
    "paper-x": PAPER_X,
    "paper-eps": PAPER_EPS,
    "tiny-x": ModelConfig(
        preset="tiny-x",
        transform=True,
        analysis_widths=(16, 16, 24),
        analysis_depth=1,
        latent=16,
        hyper=8,
        hyper_widths=(16, 16),
        unet_widths=(16, 16, 24),
        unet_depth=1,
        condition=8,
        embedding=16,
    ),
}
"""Named architectures. compact-eps is another denoiser for the files of compact-x; compact-dct has no weights that
ship yet (docs/training-log.md).

tiny-x is for tests and for trying the training out."""
