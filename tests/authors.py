"""The authors' models without the authors: names and shapes of their tensors, filled with seeded values.

The values depend on name and shape alone, so that a test without their code has the weights that the recorded results
were made with. They are chosen so that latents, means and scales vary as those of trained weights do.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdcodec.config import PRESETS, ModelConfig

X_NAME = "image-l2-use_weight5-vimeo-d64-t8193-b0.0512-x-cosine-01-float32-aux0.9lpips_2.pt"
EPS_NAME = "big-l1-vimeo-d64-t20000-b0.1024-vbrFalse-noise-linear-aux0.9lpips_0.pt"
WIDE = {preset: PRESETS[preset] for preset in ("paper-x", "paper-eps")}
FILE_NAMES = {"paper-x": X_NAME, "paper-eps": EPS_NAME}


def narrow(preset: str, dim: int) -> ModelConfig:
    """A preset with `dim` in place of the 64 channels that all widths are multiples of."""
    config = WIDE[preset]
    scaled = {
        name: tuple(width * dim // 64 for width in getattr(config, name))
        for name in ("analysis_widths", "hyper_widths", "unet_widths")
    }
    context = dim if preset == "paper-x" else 3
    return dataclasses.replace(
        config, **scaled, latent=4 * dim, hyper=4 * dim, embedding=dim, context=context
    )


def shapes(preset: str, dim: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the authors' state dict that the model needs, by name."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, c_in: int, c_out: int, kernel: int, transposed: bool = False) -> None:
        found[f"{name}.weight"] = (c_in, c_out, kernel, kernel) if transposed else (c_out, c_in, kernel, kernel)
        found[f"{name}.bias"] = (c_out,)

    def norm(name: str, channels: int) -> None:
        found[f"{name}.g"] = found[f"{name}.b"] = (1, channels, 1, 1)

    def block(name: str, c_in: int, c_out: int, time: int = 0, kernel: int = 3) -> None:
        if time:
            found[f"{name}.mlp.1.weight"], found[f"{name}.mlp.1.bias"] = (c_out, time), (c_out,)
        for i, (width, side) in enumerate(((c_in, kernel), (c_out, 3)), start=1):
            conv(f"{name}.block{i}.block.0", width, c_out, side)
            norm(f"{name}.block{i}.block.1", c_out)
        if c_in != c_out:
            conv(f"{name}.res_conv", c_in, c_out, 1)

    def attention(name: str, c: int) -> None:
        norm(f"{name}.fn.norm", c)
        conv(f"{name}.fn.fn.to_out", c, c, 1)
        found[f"{name}.fn.fn.to_qkv.weight"] = (3 * c, c, 1, 1)

    d, gap, out = dim, *((1, dim) if preset == "paper-x" else (2, 3))
    for i, (a, b) in enumerate(zip((3, d, 2 * d, 3 * d), (d, 2 * d, 3 * d, 4 * d), strict=True)):
        block(f"context_fn.enc.{i}.0", a, b, kernel=3 if i else 7)
        conv(f"context_fn.enc.{i}.{gap}.conv", b, b, 3)
    for i, (a, b, c) in enumerate(((4 * d, 3 * d, 3 * d), (3 * d, 2 * d, 2 * d), (2 * d, d, d), (d, d, out))):
        block(f"context_fn.dec.{i}.0", a, b)
        conv(f"context_fn.dec.{i}.{gap}.conv", b, c, 4, transposed=True)
    for i, kernel in enumerate((3, 5, 5)):
        conv(f"context_fn.hyper_enc.{i}.0", 4 * d, 4 * d, kernel)
    for i in (0, 1):
        conv(f"context_fn.hyper_dec.{i}.0", 4 * d, 4 * d, 5, transposed=True)
    conv("context_fn.hyper_dec.2.0", 4 * d, 8 * d, 3)
    for i, (a, b) in enumerate(((1, 3), (3, 3), (3, 3), (3, 1))):
        found[f"context_fn.prior.affine.{i}.weight"] = (4 * d, 1, 1, a, b)
        found[f"context_fn.prior.affine.{i}.bias"] = (4 * d, 1, 1, 1, b)
        if i < 3:
            found[f"context_fn.prior.a.{i}"] = (4 * d, 1, 1, 1, b)
    found["context_fn.prior._medians"] = (1, 4 * d, 1, 1)

    widths = (3, *(d * i for i in range(1, 7)))
    contexts = (out, d, 2 * d, 3 * d, 0, 0)
    for layer, (a, b) in {"0": (1, 4 * d), "2": (4 * d, d)}.items():
        found[f"denoise_fn.time_mlp.{layer}.weight"], found[f"denoise_fn.time_mlp.{layer}.bias"] = (b, a), (b,)
    for i, (a, b) in enumerate(pairwise(widths)):
        block(f"denoise_fn.downs.{i}.0", a + contexts[i], b, d, kernel=3 if i else 7)
        block(f"denoise_fn.downs.{i}.1", b, b, d)
        attention(f"denoise_fn.downs.{i}.2", b)
        if i < 5:
            conv(f"denoise_fn.downs.{i}.3.conv", b, b, 3)
            block(f"denoise_fn.ups.{4 - i}.0", 2 * widths[i + 2], b, d)
            block(f"denoise_fn.ups.{4 - i}.1", b, b, d)
            attention(f"denoise_fn.ups.{4 - i}.2", b)
            conv(f"denoise_fn.ups.{4 - i}.3.conv", b, b, 4, transposed=True)
    for name in ("mid_block1", "mid_block2"):
        block(f"denoise_fn.{name}", 6 * d, 6 * d, d)
    attention("denoise_fn.mid_attn", 6 * d)
    norm("denoise_fn.final_conv.0", d)
    conv("denoise_fn.final_conv.1", d, 3, 7)
    return found


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name and shape, float32."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    leaf = name.rpartition(".")[2]
    if ".affine." in name and leaf == "weight":
        values = math.log(math.expm1(10**-0.25 / shape[-1])) + 0.1 * noise
    elif ".prior." in name:
        values = 0.3 * noise
    elif leaf in ("g", "b"):
        values = 0.1 * noise + (leaf == "g")
    elif leaf == "bias":
        values = 0.05 * noise
        if name == "context_fn.hyper_dec.2.0.bias":
            values[len(values) // 2 :] += 4  # σ as wide as y − μ: else every thirtieth likelihood is below their 1e-9
    else:
        transposed = len(shape) == 4 and (".dec." in name or shape[2] == 4 or ("hyper_dec" in name and shape[2] == 5))
        fan_in = shape[0] * shape[2] * shape[3] / 4 if transposed else math.prod(shape[1:])
        gain = 1.2 if name.startswith(("context_fn.enc.3.1.conv", "context_fn.enc.3.2.conv")) else 1.0
        gain = 5.0 if "hyper_enc.2" in name else 0.7 if "hyper_dec.2" in name else gain
        values = gain * noise / math.sqrt(fan_in)
        if name == "context_fn.hyper_dec.2.0.weight":
            values[len(values) // 2 :] /= 2
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def state(preset: str, dim: int) -> dict[str, Tensor]:
    return {name: seeded(name, shape) for name, shape in shapes(preset, dim).items()}


def write_file(folder: Path, preset: str, dim: int, name: str | None = None) -> Path:
    """A .pt as the authors' trainers write it, with what an import has to leave out."""
    model = {**state(preset, dim), "train_betas": torch.rand(5), "loss_fn_vgg.lin0.weight": torch.rand(2, 3)}
    data: dict[str, object] = {"step": 1, "model": model}
    if preset == "paper-x":
        averaged = {f"ema_model.{n}": value for n, value in model.items()}
        latest = {n: torch.zeros_like(value) for n, value in model.items()}
        data = {"step": 1, "model": latest, "ema": {"initted": torch.tensor(True), "step": torch.tensor(7), **averaged}}
    path = folder / (name or FILE_NAMES[preset])
    torch.save(data, path)
    return path


def picture(height: int, width: int) -> np.ndarray:
    """Waves, edges and noise, uint8 (height, width, 3)."""
    row, column = np.mgrid[0:height, 0:width]
    waves = np.sin(row / 5)[..., None] * np.cos(column / np.array([7.0, 9.0, 11.0])[:, None, None]).transpose(1, 2, 0)
    noise = np.random.RandomState(4).standard_normal((height, width, 3))
    return (127.5 + 70 * waves + 50 * (column // 16 % 2)[..., None] + 8 * noise).clip(0, 255).astype(np.uint8)
