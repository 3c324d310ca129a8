"""Watching a run: estimated rate and quality on a few held-out pictures, and a strip of them to look at."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cdcodec import files
from cdcodec.errors import TrainingError
from cdcodec.lab.data import find_images, read_named
from cdcodec.lab.metrics import load_lpips, usable
from cdcodec.lab.rate import RateModel
from cdcodec.nets.diffusion import ddim
from cdcodec.nets.hyperprior import quantise
from cdcodec.nets.networks import Networks

PICTURES, SIDE, SMALLEST, STEPS = 8, 384, 64, 8


class Validation:
    """Called with averaged networks: rows of λ, and bpp, PSNR and LPIPS as they come at ρ = 0 and at the largest ρ."""

    def __init__(self, folder: Path, metric_weights: Path | None, dtype: torch.dtype) -> None:
        paths = find_images(folder)
        chosen = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]
        pictures = [read_named(path) for path in chosen]
        self.pictures = [_centre(pixels) for pixels in pictures if min(pixels.shape[:2]) >= SMALLEST]
        if not self.pictures:
            small = f"none is at least {SMALLEST} pixels wide and high"
            raise TrainingError(f"{folder}: of the {len(chosen)} pictures taken to watch the progress on, {small}")
        at_hand, _ = usable(["lpips-alex"], metric_weights)
        self.lpips = load_lpips("alex", metric_weights) if at_hand else None
        self.dtype = dtype

    @torch.no_grad()
    def __call__(self, model: tuple[Networks, RateModel], run: Path, step: int) -> list[dict[str, Any]]:
        networks, rate = model
        device = networks.ladder.log_lambda.device
        if self.lpips is not None:
            self.lpips.to(device)
        ladder = networks.config.ladder
        rows, strips = [], []
        for lam in (ladder[0], ladder[len(ladder) // 2], ladder[-1]):
            totals: dict[str, list[float]] = {}
            shown: list[Tensor] = []
            for i, picture in enumerate(self.pictures):
                x = picture.to(device)
                values, views = self._measure(networks, rate, x, lam)
                for name, value in values.items():
                    totals.setdefault(name, []).append(value)
                if i in (0, len(self.pictures) // 2):
                    row = torch.cat((x, *views), dim=3)
                    shown.append(F.pad(row, (0, (1 + len(views)) * SIDE - row.shape[3])))
            rows.append({"lambda": lam, **{name: round(float(np.mean(v)), 4) for name, v in totals.items()}})
            strips.extend(shown)
        sheet = torch.cat(strips, dim=2)[0].permute(1, 2, 0)
        pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        sheet_file = io.BytesIO()
        Image.fromarray(pixels).save(sheet_file, "PNG")
        files.write(str(run / f"validation-{step:07d}.png"), sheet_file.getvalue(), force=True)
        return rows

    def _measure(
        self, networks: Networks, rate: RateModel, x: Tensor, lam: float
    ) -> tuple[dict[str, float], list[Tensor]]:
        device = x.device
        given = networks.condition(lam)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)

        def coded(rho: float) -> tuple[float, list[Tensor], Tensor]:
            r = torch.tensor([rho], device=device)
            y = networks.analysis(x, given.condition, r, self.dtype) * given.gain
            z = quantise(networks.hyper_analysis(y))
            log_scale, mean = networks.hyper_synthesis(z, y)
            latent = quantise(y, mean)
            bits = rate.bits_z(z) + rate.bits_y(latent, log_scale, mean)
            pyramid, base = networks.synthesis(latent * given.inverse_gain, given.condition, r, self.dtype)
            return bits.item() / (x.shape[2] * x.shape[3]), pyramid, base

        rho = networks.config.rho_max
        made = {r: coded(r) for r in (0.0, rho)}

        def decode(steps: int, gamma: float, rho: float) -> Tensor:
            _, pyramid, base = made[rho]
            if steps == 0:
                return base.clamp(-1, 1)
            denoise = networks.denoiser(pyramid, base, given, rho=rho, steps=steps, dtype=self.dtype)
            return ddim(denoise, gamma * noise, networks.alpha_bars(steps)).clamp(-1, 1)

        one, sharp, textured = decode(1, 0.0, 0.0), decode(1, 0.0, rho), decode(STEPS, 0.8, rho)
        head, sharp_head = decode(0, 0.0, 0.0), decode(0, 0.0, rho)
        values = {
            "bpp": made[0.0][0],
            "bpp_sharp": made[rho][0],
            "psnr": _psnr(one, x),
            "psnr_head": _psnr(head, x),
            "psnr_steps": _psnr(decode(STEPS, 0.0, 0.0), x),
            "psnr_gamma": _psnr(textured, x),
        }
        if self.lpips is not None:
            values["lpips_head"] = self.lpips(sharp_head, x).item()
            values["lpips"] = self.lpips(sharp, x).item()
            values["lpips_steps"] = self.lpips(decode(STEPS, 0.0, rho), x).item()
            values["lpips_gamma"] = self.lpips(textured, x).item()
        return values, [head, sharp_head, sharp, textured]


def _psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / max((a - b).square().mean().item(), 1e-10))


def _centre(pixels: np.ndarray) -> Tensor:
    height, width = (min(SIDE, size // SMALLEST * SMALLEST) for size in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    crop = torch.from_numpy(pixels[top : top + height, left : left + width].copy())
    return crop.permute(2, 0, 1)[None].float() / 127.5 - 1
