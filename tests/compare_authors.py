"""The authors' code beside ours, with the same seeded weights: PYTHONPATH=. python tests/compare_authors.py PATH …

PATH is a checkout of github buggyyang/CDC_compression; none of it is part of this project. Prints how far y, z, μ, σ,
ŷ, the context pyramid, a U-Net call, the sampled picture, the estimated rate and the file's size are apart.
--record writes what the authors' code computes as the tensors that tests/test_authors.py compares with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import authors
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cdcodec import codec, weights
from cdcodec.bits.tables import ideal_bits
from cdcodec.lab.authors import estimated_bits, import_checkpoint
from cdcodec.nets.diffusion import ddim


def build_theirs(code: Path, preset: str, dim: int) -> Any:
    """Their GaussianDiffusion as their test scripts build it, at width `dim`, with seeded values."""
    sys.path.insert(0, str(code / ("xparam" if preset == "paper-x" else "epsilonparam")))
    from modules import compress_modules, denoising_diffusion, unet

    denoising_diffusion.tqdm = lambda iterable, **_: iterable
    out = dim if preset == "paper-x" else 3
    wide = {"dim": dim, "dim_mults": (1, 2, 3, 4), "hyper_dims_mults": (4, 4, 4), "out_channels": out}
    net = unet.Unet(
        dim, dim_mults=(1, 2, 3, 4, 5, 6), channels=3, context_channels=out, context_dim_mults=(1, 2, 3, 4)
    )
    if preset == "paper-x":
        context = compress_modules.ResnetCompressor(reverse_dim_mults=(4, 3, 2, 1), **wide)
        kind = {"num_timesteps": 8193, "loss_type": "l2", "pred_mode": "x", "var_schedule": "cosine"}
    else:
        context = compress_modules.BigCompressor(vbr=False, **wide)
        kind = {"num_timesteps": 20000, "clip_noise": "none", "pred_mode": "noise", "var_schedule": "linear"}
    diffusion = denoising_diffusion.GaussianDiffusion(net, context, **kind).eval().requires_grad_(False)
    values = authors.state(preset, dim)
    missing, unexpected = diffusion.load_state_dict(values, strict=False)
    if unexpected or any(not name.startswith("train_") for name in missing):
        raise SystemExit(f"their code has other tensors than expected: {missing} {unexpected}")
    return diffusion


def sample(theirs: Any, preset: str, context: list[Tensor], start: Tensor, steps: int) -> Tensor:
    theirs.set_sample_schedule(steps, torch.device("cpu"))
    if preset == "paper-x":
        return theirs.p_sample_loop(start.shape, context, clip_denoised=True, init=start)
    return theirs.p_sample_loop(start.shape, context, "ddim", init=start)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.inference_mode()
def compare(code: Path, preset: str, dim: int, size: tuple[int, int], steps: list[int]) -> dict[str, Tensor]:
    theirs = build_theirs(code, preset, dim)
    presets = mock.patch.dict(authors.PRESETS, {preset: authors.narrow(preset, dim)})
    with tempfile.TemporaryDirectory() as folder, presets:
        imported = import_checkpoint(authors.write_file(Path(folder), preset, dim), Path(folder))
        checkpoint = weights.load_model(folder, preset=preset, lam=imported.lam, device="cpu", precision="float32")
        floats, _, _ = weights.load_tensors(folder, preset=preset)
    prior = {name.removeprefix("rate."): value for name, value in floats.items() if name.startswith("rate.")}
    print(f"{preset} at width {dim}, picture {size[1]}×{size[0]}; the import's test: integers lose {imported.loss:.4%}")
    nets, config = checkpoint.model.networks, checkpoint.config
    pixels = authors.picture(*size)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    given = checkpoint.model.condition(imported.lam)

    quantised, _, parts = theirs.context_fn.encode(x)
    normal = parts["latent_distribution"]
    y = nets.analysis(x, given.condition)
    z = nets.hyper_analysis(y)
    medians = prior["medians"][:, None, None]
    log_scale, mean = nets.hyper_synthesis((z - medians).round() + medians, y.shape[2:])
    recorded = {"y": parts["latent"], "z": parts["hyper_latent"], "mean": normal.loc, "scale": normal.scale}
    for name, value in {"y": y, "z": z, "mean": mean, "scale": log_scale.exp()}.items():
        deviation = float(recorded[name].std())
        print(f"  {name:<8} {apart(value, recorded[name]):.1e} relative; theirs has deviation {deviation:.3f}")
    tie = 0.5 - ((y - mean) - (y - mean).round()).abs()
    floats = (y - mean).round() + mean
    symbols = checkpoint.model.analyse(pixels, imported.lam)
    latent = torch.from_numpy(symbols.latent(config.fraction_bits))[None] / 2.0**config.fraction_bits
    for name, value in {"ŷ, floats": floats, "ŷ, integers": latent}.items():
        other = (value - quantised).abs() > 0.5
        distance = float(tie[other].max()) if other.any() else 0.0
        print(f"  {name}: {int(other.sum())} of {other.numel()} symbols differ, at most {distance:.1e} from a tie; "
              f"the rest by at most {float((value - quantised).abs()[~other].max()):.1e}")  # fmt: skip
    bits = float(theirs.context_fn.bpp(x.shape, parts)) * size[0] * size[1]
    ours = estimated_bits(nets, prior, x)
    z_rows = np.arange(len(symbols.z))[:, None, None]
    tables = checkpoint.tables
    table = ideal_bits(symbols.z, z_rows, tables.z) + ideal_bits(symbols.y, symbols.index, tables.y)
    data = codec.encode(pixels, checkpoint, imported.lam)
    print(f"  bits: theirs {bits:.0f}, our estimate {ours / bits - 1:+.5%}, integer tables {table / bits - 1:+.5%}, "
          f"file {8 * len(data) / bits - 1:+.4%} = theirs {(8 * len(data) - bits) / 8:+.1f} bytes")  # fmt: skip

    context = theirs.context_fn.decode(quantised)
    pyramid, base = nets.synthesis(quantised, given.condition, torch.float32)
    for i, (a, b) in enumerate(zip(pyramid, context, strict=True)):
        if i >= 2:  # the finer ones are large, and seen through the U-Net
            recorded[f"context.{i}"] = b
        print(f"  context {i} {apart(a, b):.1e}")
    noise = torch.from_numpy(np.random.RandomState(7).standard_normal(x.shape)).float()
    told = torch.tensor([0.3])
    recorded["unet"] = theirs.denoise_fn(noise, told[:, None], context=context)
    contributions = nets.unet.contributions(pyramid)
    called = nets.unet(noise.contiguous(memory_format=torch.channels_last), nets.unet.embed(told), contributions)
    print(f"  U-Net    {apart(called, recorded['unet']):.1e}; theirs has deviation {recorded['unet'].std():.3f}")
    for count in steps:
        before = time.perf_counter()
        recorded[f"sample.{count}"] = sample(theirs, preset, context, 0.8 * noise, count)
        between = time.perf_counter()
        denoise, alpha_bars = nets.denoiser(pyramid, base, given, rho=0.9, steps=count, dtype=torch.float32)
        result = ddim(denoise, 0.8 * noise, alpha_bars)
        print(f"  {count} steps {apart(result, recorded[f'sample.{count}']):.1e}; "
              f"theirs {between - before:.2f} s, ours {time.perf_counter() - between:.2f} s")  # fmt: skip
    recorded["quantised"], recorded["bits"] = quantised, torch.tensor(bits)
    return recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("code", type=Path)
    parser.add_argument("--model", choices=["x", "eps"], default="x")
    parser.add_argument("--dim", type=int, default=64, help="width; that of the released weights is 64")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, nargs="*", default=[17])
    parser.add_argument("--record", type=Path, metavar="FILE")
    options = parser.parse_args()
    recorded = compare(options.code, f"paper-{options.model}", options.dim, tuple(options.size), options.steps)
    if options.record:
        save_file({name: tensor.contiguous() for name, tensor in recorded.items()}, options.record)


if __name__ == "__main__":
    main()
