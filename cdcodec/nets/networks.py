"""All float networks of one model, and the one call that joins them into a denoiser."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets import analysis, hyperprior, paper, unet
from cdcodec.nets.analysis import Ladder
from cdcodec.nets.diffusion import (
    Denoiser,
    Preconditioned,
    authors_grid,
    noise_grid,
    sigma_grid,
    sigma_of_alpha_bar,
    to_x,
)
from cdcodec.nets.hyperprior import HyperSynthesis


class Conditioning(NamedTuple):
    """The ladder's rows for one λ: condition (1, K), gain and inverse_gain (1, C_y, 1, 1), variance (1,)."""

    condition: Tensor
    gain: Tensor
    inverse_gain: Tensor
    variance: Tensor


class Networks(nn.Module):
    """The float parameters that are trained and shipped, under the names they carry in a checkpoint.

    The parts of both kinds of blocks are called alike; `Any`, because a preset decides which they are.
    """

    analysis: Any
    hyper_analysis: Any
    synthesis: Any
    unet: Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        theirs = config.blocks == "paper"
        self.ladder = Ladder(config)
        self.analysis = paper.Analysis(config) if theirs else analysis.Analysis(config)
        self.hyper_analysis = paper.HyperAnalysis(config) if theirs else hyperprior.HyperAnalysis(config)
        self.hyper_synthesis = HyperSynthesis(config)
        self.synthesis = paper.Synthesis(config) if theirs else analysis.Synthesis(config)
        self.unet = paper.UNet(config) if theirs else unet.UNet(config)

    def condition(self, lam: float) -> Conditioning:
        """The conditioning of λ, interpolated between the ladder's rungs."""
        ladder = self.ladder
        rows = ladder.weights(torch.tensor([lam], dtype=torch.float32, device=ladder.log_lambda.device))
        wide = (slice(None), slice(None), None, None)
        return Conditioning(
            rows @ ladder.condition,
            (rows @ ladder.log_gain).exp()[wide],
            (rows @ ladder.log_inverse_gain).exp()[wide],
            (rows @ ladder.log_variance).exp(),
        )

    def predict(  # noqa: PLR0917
        self,
        x_t: Tensor,
        alpha_bar: Tensor,
        base: Tensor,
        variance: Tensor,
        condition: Tensor,
        rho: Tensor,
        contributions: list[list[Tensor]],
        *,
        blank: bool = False,
    ) -> Tensor:
        """x̂_0 (B, 3, H, W) float32 from x_t, base (B, 3, H, W), alpha_bar, variance, rho (B,), condition (B, K).

        blank: x_t is nothing but zeros, at ᾱ = 0, and the U-Net need not look at it.
        For the schedule "sigma". Preconditioned on the base, predictions of x and of ε differ in their sign alone (left
        out here): both are of what the best linear estimate leaves over, at unit variance (Karras et al. 2022, arXiv
        2206.00364, table 1). The parametrisations differ in what they are trained for and where sampling starts.
        """
        wide = (slice(None), None, None, None)
        embedding = self.unet.embed(sigma_of_alpha_bar(alpha_bar), condition, rho)
        if blank:
            state = Preconditioned.blank(base, variance[wide])
        else:
            state = Preconditioned.of(x_t, base, variance[wide], alpha_bar[wide])
        output: Tensor = self.unet(state.input, embedding, contributions)
        return state.x_0(output)

    def alpha_bars(self, steps: int) -> list[float]:
        """The ᾱ of `steps` ≥ 1 sampling steps, as `diffusion.ddim` takes them."""
        if self.config.schedule == "sigma":
            return noise_grid(steps) if self.config.parametrisation == "eps" else sigma_grid(steps)
        return authors_grid(self.config.schedule, self.config.timesteps, steps)[0]

    def denoiser(
        self,
        pyramid: list[Tensor],
        base: Tensor | None,
        given: Conditioning,
        *,
        rho: float,
        steps: int,
        dtype: torch.dtype,
    ) -> Denoiser:
        """What `diffusion.ddim` takes: x̂_0 of (x_t, ᾱ), for the ᾱ of the steps. The context's part is computed once."""
        if base is None:
            return self._plain_denoiser(self.unet.contributions(pyramid), steps, dtype)
        contributions = self.unet.contributions(pyramid, base)

        def denoise(x_t: Tensor, alpha_bar: float) -> Tensor:
            level, realism = (torch.tensor([v], dtype=torch.float32, device=x_t.device) for v in (alpha_bar, rho))
            blank = alpha_bar == 0 and not x_t.any()
            return self.predict(x_t, level, base, given.variance, given.condition, realism, contributions, blank=blank)

        return denoise

    def _plain_denoiser(self, contributions: list[list[Tensor]], steps: int, dtype: torch.dtype) -> Denoiser:
        """The authors': the U-Net sees x_t itself and the time, and its output is x̂_0 or ε."""
        config = self.config
        told = dict(zip(*authors_grid(config.schedule, config.timesteps, steps), strict=True))

        def denoise(x_t: Tensor, alpha_bar: float) -> Tensor:
            both = (alpha_bar, told[alpha_bar])
            level, time = (torch.tensor([v], dtype=torch.float32, device=x_t.device) for v in both)
            fed = x_t.to(dtype).contiguous(memory_format=torch.channels_last)
            x_0 = to_x(self.unet(fed, self.unet.embed(time), contributions), config.parametrisation, x_t, level)
            return x_0.clamp(-1, 1) if config.clamp else x_0

        return denoise
