"""The tensor side of the codec: a picture to Symbols, and a decoded latent to a picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcodec.errors import SettingError, WeightsError
from cdcodec.nets.diffusion import Denoiser, ddim
from cdcodec.nets.integer import IntegerHyperSynthesis
from cdcodec.nets.judge import Judge
from cdcodec.nets.networks import Conditioning, Networks
from cdcodec.nets.refine import Refiner
from cdcodec.nets.tiles import Box, Reach, Tiling, check
from cdcodec.symbols import SYMBOL_LIMIT, Symbols

COMPILERS = (os.environ.get("CXX"), "g++", "clang++", "cl")


class Model:
    """Networks ready for use on one device in one precision, with the integer hyper-synthesis on the CPU.

    device: where the networks run. dtype: float32 or bfloat16, of the convolutions; latents and pixels are float32.
    tile: side in pixels of the tiles that a picture is cut into (see tiles.py), "auto" (large pictures only) or "off";
    else ValueError. compile: let torch.compile make the denoiser, on CUDA with graphs; SettingError on a CPU without a
    compiler. judge: gives the tensors of the Judge that effort above 0 asks.
    """

    def __init__(
        self,
        networks: Networks,
        integer: IntegerHyperSynthesis,
        device: torch.device,
        dtype: torch.dtype,
        *,
        tile: int | str = "auto",
        compile: bool = False,
        judge: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> None:
        self.config, self._judge = networks.config, judge
        self.tile, self.reach = check(tile), Reach.of(networks.config)
        self.integer, self.device, self.dtype = integer, device, dtype
        self.encoder_dtype = torch.float32 if self.config.exact_encoder else dtype
        self.networks = networks.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        cast = {p: self.encoder_dtype for p in networks.analysis.levels.parameters()}
        cast |= {p: dtype for part in (networks.synthesis.levels, networks.unet) for p in part.parameters()}
        for p in self.networks.parameters():
            p.data = p.to(cast.get(p, torch.float32))  # once, however they are stored; the layers cast the others
        if compile:
            if device.type == "cpu" and not any(name and shutil.which(name.split()[0]) for name in COMPILERS):
                raise SettingError("to compile the denoiser takes a C++ compiler, and there is none")
            self.networks.unet.compile(mode="reduce-overhead" if device.type == "cuda" else "default")

    @cached_property
    @torch.inference_mode(False)
    def judge(self) -> Judge:
        """Raises WeightsError where its weights are missing."""
        try:
            return Judge(self._judge(), self.device, self.dtype)
        except (WeightsError, ValueError) as error:
            raise WeightsError(f"{error}; encode with --effort 0 or --rho 0, or see cdcodec.lab.judge") from None

    def check_effort(self, rho: float) -> None:
        """That y can be refined for ρ. Raises SettingError without a light head, WeightsError without a judge."""
        if self.config.blocks == "paper":
            raise SettingError(f"{self.config.preset} has no light head to refine a latent by; encode without --effort")
        if rho > 0:
            _ = self.judge

    @torch.inference_mode()
    def analyse(self, pixels: NDArray[np.uint8], lam: float, *, effort: int = 0, rho: float | None = None) -> Symbols:
        """Padded pixels uint8 (H, W, 3), H and W multiples of the stride → the Symbols that code them.

        rho: at which y shall decode best, None for the configuration's. effort: steps in which it is refined for that
        (refine.py). y's index and mean come from the integers coded before, by the very function that the decoder
        calls. Raises SettingError, WeightsError for effort that cannot be made (`check_effort`).
        """
        rho = self.config.rho if rho is None else rho
        if effort:
            self.check_effort(rho)
        given, realism = self.networks.condition(lam), torch.tensor([rho], device=self.device)
        picture = torch.from_numpy(np.require(pixels, requirements=("C", "W")))[None].permute(0, 3, 1, 2)
        tiling = Tiling.of((pixels.shape[0], pixels.shape[1]), self.config, self.tile)

        def analysed(box: Box) -> list[Tensor]:
            x = box.of(picture, tiling.whole).to(self.device).float() / 127.5 - 1
            x = x.contiguous(memory_format=torch.channels_last)
            return [self.networks.analysis(x, given.condition, realism, self.encoder_dtype)]

        y = tiling.run(analysed, self.reach.analysis)[0] * given.gain
        z = _integers((self.networks.hyper_analysis(y)[0].cpu() - self.integer.offset).numpy())
        if effort:
            y = self._refined(y, z, picture, lam, effort, rho)
        return self._coded(y, z)

    def _coded(self, y: Tensor, z: NDArray[np.int32]) -> Symbols:
        """The Symbols of y (1, C_y, h, w) given z."""
        flat = y[0].cpu().numpy().reshape(-1)

        def code(places: NDArray[np.int64], index: NDArray[np.uint8], mean: NDArray[np.int32]) -> NDArray[np.int32]:
            return _integers(flat[places] - mean / 2.0**self.config.fraction_bits)

        return self.integer(z, (y.shape[2], y.shape[3]), code)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _refined(  # noqa: PLR0917
        self, y: Tensor, z: NDArray[np.int32], picture: Tensor, lam: float, effort: int, rho: float
    ) -> Tensor:
        """y after `effort` steps of refinement."""
        given, realism = self.networks.condition(lam), torch.tensor([rho], device=self.device)

        def coded(y: Tensor) -> tuple[Tensor, Tensor]:
            symbols = self._coded(y, z)
            mean, index = (torch.from_numpy(v).to(self.device).float()[None] for v in (symbols.mean, symbols.index))
            return mean / 2.0**self.config.fraction_bits, index

        def decoded(latent: Tensor) -> Tensor:
            base: Tensor = self.networks.synthesis(latent * given.inverse_gain, given.condition, realism, self.dtype)[1]
            return base

        refiner = Refiner(self.config, coded, decoded, self.judge if rho > 0 else None, lam, rho)
        return refiner(y, picture.to(self.device).float() / 127.5 - 1, effort)

    @torch.inference_mode()
    def synthesise(
        self,
        latent: NDArray[np.int32],
        lam: float,
        *,
        steps: int,
        gamma: float,
        seed: int,
        rho: float,
    ) -> NDArray[np.uint8]:
        """ŷ int32 (C_y, h, w) in 1/2^f → pixels uint8 (16h, 16w, 3); steps 0 is the light head alone.

        Raises SettingError for 0 steps of a model without that head.
        """
        given = self.networks.condition(lam)
        y = torch.from_numpy(latent).to(self.device)[None].float() / 2.0**self.config.fraction_bits
        y = (y * given.inverse_gain).contiguous(memory_format=torch.channels_last)
        tiling = Tiling.of((self.config.stride * y.shape[2], self.config.stride * y.shape[3]), self.config, self.tile)
        whole = tiling.whole
        if steps == 0:
            if self.config.blocks == "paper":
                raise SettingError(f"{self.config.preset} has no light head to decode with alone; take 1 step or more")
            base = tiling.run(lambda box: self._context(box.of(y, whole), given, rho)[-1:], self.reach.synthesis)[0]
            return _pixels(base)
        denoise = self._denoiser(y, given, tiling, rho=rho, steps=steps)
        return _pixels(ddim(denoise, self._start(whole, gamma, seed), self.networks.alpha_bars(steps)))

    def _context(self, y: Tensor, given: Conditioning, rho: float) -> list[Tensor]:
        """The context pyramid and, where there is one, the light head's picture."""
        realism = torch.tensor([rho], device=y.device)
        pyramid, base = self.networks.synthesis(y, given.condition, realism, self.dtype)
        return [*pyramid] if base is None else [*pyramid, base]

    def _denoiser(self, y: Tensor, given: Conditioning, tiling: Tiling, *, rho: float, steps: int) -> Denoiser:
        """What `ddim` takes, for the whole picture at once or tile by tile."""
        paper, whole, reach = self.config.blocks == "paper", tiling.whole, self.reach

        def denoiser(context: list[Tensor]) -> Denoiser:
            pyramid, base = (context, None) if paper else (context[:-1], context[-1])
            return self.networks.denoiser(pyramid, base, given, rho=rho, steps=steps, dtype=self.dtype)

        if tiling.single:
            return denoiser(self._context(y, given, rho))

        def context(box: Box) -> list[Tensor]:
            return self._context(box.of(y, whole), given, rho)

        # The compact pyramid is small, and kept; the paper's has 64 channels at full resolution, and is made anew.
        kept = [] if paper else tiling.run(context, reach.synthesis)

        def local(box: Box) -> list[Tensor]:
            wide = whole if kept else box.grown(reach.synthesis, whole)
            return [box.of(level, wide) for level in kept or context(wide)]

        def denoise(x_t: Tensor, alpha_bar: float) -> Tensor:
            def call(box: Box) -> list[Tensor]:
                return [denoiser(local(box))(box.of(x_t, whole), alpha_bar)]

            return tiling.run(call, reach.unet, blend=paper)[0]

        return denoise

    def _start(self, whole: Box, gamma: float, seed: int) -> Tensor:
        """x_N = γ·ε, (1, 3, H, W). NumPy's RandomState is a frozen stream: the same noise everywhere and for good."""
        shape = (3, whole.bottom, whole.right)
        if gamma == 0:
            return torch.zeros((1, *shape), device=self.device)
        noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        return torch.from_numpy(noise)[None].to(self.device) * gamma


def _integers(values: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Rounded to even and saturated at ±SYMBOL_LIMIT."""
    return np.rint(values).clip(-SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)


def _pixels(x: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] → uint8 (H, W, 3)."""
    scaled = x[0].clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    pixels: NDArray[np.uint8] = scaled.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels
