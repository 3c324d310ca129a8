"""All float networks of one model, and the one call that joins them into a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.analysis import Analysis, Ladder, Synthesis
from cdcodec.nets.diffusion import Preconditioned, sigma_of_alpha_bar
from cdcodec.nets.hyperprior import HyperAnalysis, HyperSynthesis
from cdcodec.nets.unet import UNet


class Networks(nn.Module):
    """The float parameters that are trained and shipped, under the names they carry in a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.ladder = Ladder(config)
        self.analysis = Analysis(config)
        self.hyper_analysis = HyperAnalysis(config)
        self.hyper_synthesis = HyperSynthesis(config)
        self.synthesis = Synthesis(config)
        self.unet = UNet(config)

    def predict(
        self,
        x_t: Tensor,
        alpha_bar: Tensor,
        base: Tensor,
        variance: Tensor,
        condition: Tensor,
        rho: Tensor,
        contributions: list[list[Tensor]],
        dtype: torch.dtype,
    ) -> Tensor:
        """x̂_0 (B, 3, H, W) float32 from x_t, base (B, 3, H, W), alpha_bar, variance, rho (B,), condition (B, K)."""
        wide = (slice(None), None, None, None)
        state = Preconditioned.of(x_t, base, variance[wide], alpha_bar[wide])
        embedding = self.unet.embed(sigma_of_alpha_bar(alpha_bar), condition, rho)
        # The U-Net's convolutions are fastest with channels last, so its input is laid out so.
        scaled = state.input.to(dtype).contiguous(memory_format=torch.channels_last)
        return state.x_0(self.unet(scaled, embedding, contributions))
