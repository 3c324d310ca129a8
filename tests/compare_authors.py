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
from collections.abc import Callable
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
from cdcodec.device import keep_freed_memory
from cdcodec.lab.authors import estimated_bits, import_checkpoint
from cdcodec.nets.diffusion import ddim
from cdcodec.weights import Checkpoint


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
def compare(options: argparse.Namespace) -> dict[str, Tensor]:
    preset, dim, size = f"paper-{options.model}", options.dim, tuple(options.size)
    theirs = build_theirs(options.code, preset, dim)
    presets = mock.patch.dict(authors.PRESETS, {preset: authors.narrow(preset, dim)})
    with tempfile.TemporaryDirectory() as folder, presets:
        imported = import_checkpoint(authors.write_file(Path(folder), preset, dim), Path(folder))
        parts = weights.load_tensors(folder, preset=preset)
        ours = weights.load_model(folder, preset=preset, device="cpu", precision="float32")
    print(f"{preset} at width {dim}, picture {size[1]}×{size[0]}; the import's test: integers lose {imported.loss:.4%}")
    prior = {name.removeprefix("rate."): value for name, value in parts[0].items() if name.startswith("rate.")}
    recorded = compare_latents(theirs, ours, prior, authors.picture(*size))
    low = weights.assemble(*parts, "cpu", "bfloat16") if options.bfloat16 else None
    return recorded | compare_pictures(theirs, ours, low, recorded["quantised"], options.steps)


def compare_latents(theirs: Any, ours: Checkpoint, prior: dict[str, Tensor], pixels: np.ndarray) -> dict[str, Tensor]:
    nets, config, lam = ours.model.networks, ours.config, ours.ladder[0]
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    quantised, _, parts = theirs.context_fn.encode(x)
    normal = parts["latent_distribution"]
    y = nets.analysis(x, ours.model.networks.condition(lam).condition, x.new_zeros(1), x.dtype)
    z = nets.hyper_analysis(y)
    medians = prior["medians"][:, None, None]
    log_scale, mean = nets.hyper_synthesis((z - medians).round() + medians, y)
    recorded = {"y": parts["latent"], "z": parts["hyper_latent"], "mean": normal.loc, "scale": normal.scale}
    for name, value in {"y": y, "z": z, "mean": mean, "scale": log_scale.exp()}.items():
        deviation = float(recorded[name].std())
        print(f"  {name:<8} {apart(value, recorded[name]):.1e} relative; theirs has deviation {deviation:.3f}")
    tie = 0.5 - ((y - mean) - (y - mean).round()).abs()
    symbols = ours.model.analyse(pixels, lam)
    latent = torch.from_numpy(symbols.latent(config.fraction_bits))[None] / 2.0**config.fraction_bits
    for name, value in {"ŷ, floats": (y - mean).round() + mean, "ŷ, integers": latent}.items():
        other = (value - quantised).abs() > 0.5
        distance = float(tie[other].max()) if other.any() else 0.0
        print(f"  {name}: {int(other.sum())} of {other.numel()} symbols differ, at most {distance:.1e} from a tie; "
              f"the rest by at most {float((value - quantised).abs()[~other].max()):.1e}")  # fmt: skip
    bits = float(theirs.context_fn.bpp(x.shape, parts)) * x.shape[2] * x.shape[3]
    estimate = sum(bits.sum() for bits in estimated_bits(nets, prior, x))
    rows, tables = np.arange(len(symbols.z))[:, None, None], ours.tables
    table = ideal_bits(symbols.z, rows, tables.z) + ideal_bits(symbols.y, symbols.index, tables.y)
    size = 8 * len(codec.encode(pixels, ours, lam))
    print(f"  bits: theirs {bits:.0f}, our estimate {estimate / bits - 1:+.5%}, integers {table / bits - 1:+.5%}, "
          f"file {size / bits - 1:+.4%} = theirs {(size - bits) / 8:+.1f} bytes")  # fmt: skip
    return recorded | {"quantised": quantised, "bits": torch.tensor(bits)}


def compare_pictures(
    theirs: Any, ours: Checkpoint, low: Checkpoint | None, latent: Tensor, steps: list[int]
) -> dict[str, Tensor]:
    """From the same ŷ on; `low` is our model in bfloat16. Ours keep freed memory as they do in `cdcodec decode`."""
    preset, recorded = ours.config.preset, {}
    context = theirs.context_fn.decode(latent)
    given = ours.model.networks.condition(ours.ladder[0])
    pyramid, _ = ours.model.networks.synthesis(latent, given.condition, torch.zeros(1), torch.float32)
    for i, (a, b) in enumerate(zip(pyramid, context, strict=True)):
        print(f"  context {i} {apart(a, b):.1e}")
        if i >= 2:  # the finer ones are large, and seen through the U-Net
            recorded[f"context.{i}"] = b
    shape = (1, 3, 16 * latent.shape[2], 16 * latent.shape[3])
    noise = torch.from_numpy(np.random.RandomState(7).standard_normal(shape)).float()
    told, unet = torch.tensor([0.3]), ours.model.networks.unet
    recorded["unet"] = theirs.denoise_fn(noise, told[:, None], context=context)
    channels_last = noise.contiguous(memory_format=torch.channels_last)
    called = unet(channels_last, unet.embed(told), unet.contributions(pyramid))
    print(f"  U-Net    {apart(called, recorded['unet']):.1e}; theirs has deviation {recorded['unet'].std():.3f}")
    for count in steps:
        seconds, expected = timed(lambda n=count: sample(theirs, preset, context, 0.8 * noise, n))
        recorded[f"sample.{count}"] = expected
        print(f"  {count} steps: theirs {seconds:.2f} s")
        keep_freed_memory()
        for name, checkpoint, dtype in (("float32", ours, torch.float32), ("bfloat16", low, torch.bfloat16)):
            if checkpoint is not None:
                seconds, result = timed(lambda c=checkpoint, d=dtype, n=count: decoded(c, latent, noise, n, d))
                away = (result - expected).clamp(-2, 2).abs() * 127.5
                print(f"  {count} steps: ours in {name} {seconds:.2f} s with context, {apart(result, expected):.1e}; "
                      f"{float(away.mean()):.3f}/255 on average, {float(away.max()):.2f} at most")  # fmt: skip
    return recorded


def decoded(checkpoint: Checkpoint, latent: Tensor, noise: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    model = checkpoint.model
    given = model.networks.condition(checkpoint.ladder[0])
    pyramid, base = model.networks.synthesis(latent, given.condition, torch.zeros(1), dtype)
    denoise = model.networks.denoiser(pyramid, base, given, rho=0.9, steps=steps, dtype=dtype)
    return ddim(denoise, 0.8 * noise, model.networks.alpha_bars(steps))


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    before = time.perf_counter()
    result = call()
    return time.perf_counter() - before, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("code", type=Path)
    parser.add_argument("--model", choices=["x", "eps"], default="x")
    parser.add_argument("--dim", type=int, default=64, help="width; that of the released weights is 64")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, nargs="*", default=[17])
    parser.add_argument("--bfloat16", action="store_true", help="sample in bfloat16, too")
    parser.add_argument("--record", type=Path, metavar="FILE")
    options = parser.parse_args()
    recorded = compare(options)
    if options.record:
        save_file({name: tensor.contiguous() for name, tensor in recorded.items()}, options.record)


if __name__ == "__main__":
    main()
