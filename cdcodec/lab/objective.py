"""The training objective: λ·bpp + (1 − ρ)·w(t)·‖x̂₀ − x‖² + ρ·κ·LPIPS (paper eq. 9, with one ladder for all λ and ρ).
For the light head's picture 1 − ρ/2 stands for 1 − ρ, and a κ of its own. Every sample's loss is divided by √λ_eff: it
grows about as fast, and the smallest λ would be drowned.

‖·‖² is the mean over elements, x in [−1, 1]. Every random number is drawn from the samples' keys (draws.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.lab import draws
from cdcodec.lab.critic import Critic, Shared
from cdcodec.lab.rate import RateModel
from cdcodec.nets.diffusion import SIGMA_RANGE, SIGMA_START, alpha_bar_of_sigma, from_x
from cdcodec.nets.hyperprior import quantise
from cdcodec.nets.networks import Networks
from cdcodec.nets.refine import MSE_WEIGHT, SHIFTS

STREAM_LAMBDA, STREAM_RHO, STREAM_NOISE_Y, STREAM_NOISE_Z, STREAM_EPS, STREAM_STATE = 3, 4, 5, 6, 7, 8
STREAM_VIEW = 9
ALIKE = 8
ASKED = 0.7
"""Share of the samples that LPIPS is asked about on a GPU; ρ is above 0 for three in five (`Objective.draw_rho`)."""
FAR_SIDE = 120  # of views, at least, to be seen at half the resolution too
SNR_WEIGHT_MAX = 5.0


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one objective.

    kind: "autoencoder" (light head alone), "joint" (with the denoiser, MSE), "perceptual" (with LPIPS and ρ),
        "denoiser" (as perceptual, with all but the U-Net frozen), "noise" (likewise, for a U-Net that predicts ε: its
        squared error at σ log-uniform over the whole schedule, Ho et al. 2020, eq. 14), "entropy" (the hyper-networks
        and the density of z alone, by the rate alone: what small crops, of which z is all border, have left behind),
        "decoder" (as autoencoder, the context decoder alone, for the same files) and "smoothing" (the filter behind
        the light head alone).
    steps: optimiser steps. crop: side in pixels. batch: crops a step over all processes, a multiple of 4 each.
    rate: of learning, as a share of the recipe's. decay: share of the steps over which it falls linearly to a
        hundredth at the end. lpips: κ of the light head; at 0 it is trained by its squared error alone, whatever ρ.
    critic: wherever LPIPS judges, the gradient of a critic that learns along (critic.py), as a share of LPIPS's.
    """

    kind: str = "autoencoder"
    steps: int = 1000
    crop: int = 128
    batch: int = 16
    rate: float = 1.0
    decay: float = 0.35
    lpips: float = 0.0
    critic: float = 0.0

    @property
    def perceptual(self) -> bool:
        """Whether its loss has LPIPS in it."""
        return self.kind in ("perceptual", "denoiser") or self.lpips > 0


@dataclass(frozen=True)
class Weights:
    """Constants of the objective.

    λ_eff = lambda_scale·λ^lambda_power multiplies the rate; kappa balances LPIPS against the squared error; lattice is
    how much more than the rest of the squared error the part that repeats counts (`repeating`).
    """

    lambda_scale: float = 1.0
    lambda_power: float = 1.0
    kappa: float = 0.0625
    lattice: float = 0.0


class Given(NamedTuple):
    """What the denoiser is given beside x_t: base (B, 3, S, S), variance, ρ (B,), condition (B, K) and the pyramid."""

    base: Tensor
    variance: Tensor
    condition: Tensor
    rho: Tensor
    pyramid: list[Tensor]


class Objective(nn.Module):
    """Loss of one batch. Call with x (B, 3, S, S), keys int64 (B,) and the ramp in [0, 1] that scales λ.

    Returns the loss and a dict of detached 0-dim tensors for the log. The first half of the samples starts where
    decoding starts (ᾱ = 0, x_t = γ·ε), the next quarter is noised originals, the last states of the sampler's own.
    """

    def __init__(
        self,
        networks: Networks,
        rate: RateModel,
        *,
        lpips: nn.Module | None,
        kind: str,
        head_lpips: float = 0.0,
        critic: Critic | None = None,
        critic_share: float = 0.0,
        weights: Weights,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.networks, self.rate, self.lpips = networks, rate, lpips
        self.kind, self.head_lpips, self.weights, self.dtype = kind, head_lpips, weights, dtype
        self.critic, self.critic_share = critic, critic_share

    def forward(self, x: Tensor, key: Tensor, ramp: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ladder = self.networks.ladder
        low, high = ladder.log_lambda[0], ladder.log_lambda[-1]
        lam = (low + (high - low) * draws.uniform(key, STREAM_LAMBDA, 1)[:, 0]).exp()
        rows = ladder.weights(lam)
        condition, log_variance = rows @ ladder.condition, rows @ ladder.log_variance
        rho = self.draw_rho(key)
        bits, latent = self.code(x, key, rows, condition, rho)
        bpp = bits / (x.shape[2] * x.shape[3])
        lam_eff = self.weights.lambda_scale * lam**self.weights.lambda_power
        rate, balance = ramp * lam_eff * bpp, lam_eff.rsqrt()
        if self.kind == "entropy":
            loss = (balance * rate).mean()
            return loss, {"loss": loss.detach(), "bpp": bpp.detach().mean()}
        pyramid, base = self.networks.synthesis(latent, condition, rho, self.dtype)
        # The light head answers for its own error alone; what ρ asks for is left to the denoiser.
        given = Given(base.detach(), log_variance.exp().detach(), condition, rho, pyramid)
        if self.kind == "noise":
            return self.noise(x, key, given)
        base_mse = (base - x).square().mean(dim=(1, 2, 3))
        metrics = {"bpp": bpp.mean(), "base_mse": base_mse.mean()}
        adversarial = torch.zeros_like(base_mse[0])
        distortion = MSE_WEIGHT * self.counted(base - x, base_mse, metrics, "base_lattice")
        if self.lpips is not None and self.head_lpips:
            distance, adversarial = self.perceived(base, x, key, rho, metrics)
            # Half of the squared error stays at any ρ: with less the light head puts its 4 × 4 grid into smooth areas.
            distortion = (1 - rho / 2) * distortion + rho * self.head_lpips * distance
            metrics["plain_mse"], metrics["sharp_mse"] = _shared(base_mse, 1 - rho), _shared(base_mse, rho)
            metrics["base_lpips"] = _shared(distance, rho)
        if self.kind not in ("autoencoder", "decoder", "smoothing"):
            diffusion, more, more_adversarial = self.diffuse(x, key, given)
            # Beside the light head at its full weight: with less, the rate soon outweighs it.
            distortion, adversarial = distortion + diffusion, adversarial + more_adversarial
            metrics.update(more)
        loss = (balance * (rate + distortion)).mean()
        # s² follows the error of the light head: the maximum of a Gaussian likelihood, touching nothing else.
        fit = 0.5 * (base_mse.detach() / log_variance.exp() + log_variance).mean()
        metrics["loss"] = loss
        return loss + 0.01 * fit + adversarial, {name: value.detach() for name, value in metrics.items()}

    def code(self, x: Tensor, key: Tensor, rows: Tensor, condition: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Bits (B,) and the latent as it is decoded. Noise for the rate, rounding for the decoder's input."""
        nets, wide = self.networks, (slice(None), slice(None), None, None)
        pixels = x.contiguous(memory_format=torch.channels_last)
        y = nets.analysis(pixels, condition, rho, self.dtype) * (rows @ nets.ladder.log_gain).exp()[wide]
        z = nets.hyper_analysis(y)
        log_scale, mean = nets.hyper_synthesis(quantise(z), y)
        noise_y = draws.uniform(key, STREAM_NOISE_Y, y[0].numel()).view_as(y) - 0.5
        noise_z = draws.uniform(key, STREAM_NOISE_Z, z[0].numel()).view_as(z) - 0.5
        bits = self.rate.bits_z(z + noise_z) + self.rate.bits_y(y + noise_y, log_scale, mean)
        latent = quantise(y, mean) * (rows @ nets.ladder.log_inverse_gain).exp()[wide]
        return bits, latent.contiguous(memory_format=torch.channels_last)

    def diffuse(self, x: Tensor, key: Tensor, given: Given) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The distortion (B,) of the denoiser's x̂₀, its parts for the log and the adversarial loss."""
        batch, half, own = len(x), len(x) // 2, 3 * len(x) // 4
        u = draws.uniform(key, STREAM_STATE, 3)
        eps = draws.normal(key, STREAM_EPS, x[0].numel()).view_as(x)
        position = torch.arange(batch, device=x.device)
        start, noised = position < half, (position >= half) & (position < own)
        low, high = math.log(SIGMA_RANGE[0]), math.log(SIGMA_RANGE[1])
        alpha_bar = alpha_bar_of_sigma((low + (high - low) * u[:, 0]).exp())
        alpha_bar = torch.where(start, torch.zeros_like(alpha_bar), alpha_bar)
        # Where decoding starts γ is 0 half of the time; a noised original has all its noise; in between anything goes.
        gamma = torch.where(start & (u[:, 1] < 0.5), torch.zeros_like(alpha_bar), u[:, 2])
        gamma = torch.where(noised, torch.ones_like(gamma), gamma)
        base, variance, condition, rho, pyramid = given
        contributions = self.networks.unet.contributions(pyramid, base)

        def predict(x_t: Tensor, alpha: Tensor, part: slice) -> Tensor:
            parts = [[c[part] for c in level] for level in contributions]
            return self.networks.predict(x_t, alpha, base[part], variance[part], condition[part], rho[part], parts)

        last = slice(own, batch)
        with torch.no_grad():
            first = predict(gamma[last, None, None, None] * eps[last], torch.zeros_like(alpha_bar[last]), last)
        origin = torch.cat((x[:own], first))
        a = alpha_bar[:, None, None, None]
        x_t = a.sqrt() * origin + gamma[:, None, None, None] * (1 - a).sqrt() * eps
        x_0 = predict(x_t, alpha_bar, slice(0, batch))
        mse = (x_0 - x).square().mean(dim=(1, 2, 3))
        snr_weight = (alpha_bar / (1 - alpha_bar)).clamp(MSE_WEIGHT, SNR_WEIGHT_MAX)
        # Against the light head on the same samples: above 0, the denoiser is worth its time.
        gain = (base - x)[:half].square().mean() - mse[:half].mean()
        metrics = {"start_gain": gain, "noised_mse": mse[half:own].mean(), "own_mse": mse[own:].mean()}
        mse = self.counted(x_0 - x, mse, metrics, "lattice")
        if self.lpips is None or self.kind == "joint":
            return snr_weight * mse, metrics, torch.zeros_like(gain)
        distance, adversarial = self.perceived(x_0, x, key, rho, metrics)
        metrics["lpips"] = _shared(distance, rho)
        return (1 - rho) * snr_weight * mse + rho * self.weights.kappa * distance, metrics, adversarial

    def noise(self, x: Tensor, key: Tensor, given: Given) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of the noise that the denoiser predicts."""
        low, high = math.log(SIGMA_RANGE[0]), math.log(SIGMA_START)
        alpha_bar = alpha_bar_of_sigma((low + (high - low) * draws.uniform(key, STREAM_STATE, 1)[:, 0]).exp())
        eps = draws.normal(key, STREAM_EPS, x[0].numel()).view_as(x)
        a = alpha_bar[:, None, None, None]
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps
        base, variance, condition, rho, pyramid = given
        contributions = self.networks.unet.contributions(pyramid, base)
        x_0 = self.networks.predict(x_t, alpha_bar, base, variance, condition, rho, contributions)
        loss = (from_x(x_0, "eps", x_t, a) - eps).square().mean()
        return loss, {"loss": loss.detach(), "x_mse": (x_0.detach() - x).square().mean()}

    def counted(self, error: Tensor, mse: Tensor, metrics: dict[str, Tensor], name: str) -> Tensor:
        """The mean squared error (B,) with what of it repeats at its weight; its share of the whole goes to the log."""
        if not self.weights.lattice:
            return mse
        lattice = repeating(error, self.networks.config.stride)
        metrics[name] = lattice.sum() / mse.sum()
        return mse + self.weights.lattice * lattice

    def perceived(
        self, picture: Tensor, x: Tensor, key: Tensor, rho: Tensor, metrics: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """LPIPS (B,), 0 where ρ is, and a 0-dim loss by which the critic learns, and the picture from it."""
        if x.is_cuda:  # nothing there may wait to learn how many; of a few above ρ = 0 it is not asked, now and then
            asked = rho.topk(math.ceil(ASKED * len(x)), sorted=False).indices
        else:
            places = torch.arange(len(x))
            asked = places[(rho > 0) | ((places == 0) & (rho.sum() == 0))]
        seen, original = views(picture[asked], x[asked], key[asked], self.dtype)
        adversarial = torch.zeros_like(rho[0])
        if self.critic is not None and self.critic_share > 0:
            seen, judged = Shared.apply(seen, self.critic_share * self.critic.say)
            decoder, metrics["critic"] = self.critic.losses(judged[::2], original[::2])  # half of them, for speed
            adversarial = decoder + metrics["critic"]
        distances = torch.zeros_like(rho).index_copy(0, asked, self.distance(seen, original))
        return distances.where(rho > 0, 0), adversarial

    def distance(self, seen: Tensor, original: Tensor) -> Tensor:
        """LPIPS (B,) of views, every second one at half the resolution, as from twice as far away: what a network sees
        in one size only, no other network sees. Small views are left as they are."""
        assert self.lpips is not None, "asked of perceptual phases only"
        if len(seen) < 2 or seen.shape[2] < FAR_SIDE:
            return self.lpips(seen, original).view(-1).float()
        distances = torch.zeros(len(seen), device=seen.device)
        distances[::2] = self.lpips(seen[::2], original[::2]).view(-1).float()
        halved = [F.avg_pool2d(pictures[1::2], 2) for pictures in (seen, original)]
        distances[1::2] = self.lpips(*halved).view(-1).float()
        return distances

    def draw_rho(self, key: Tensor) -> Tensor:
        """ρ (B,): 0 for two samples in five, its maximum for two, anything between for one; 0 if LPIPS is lacking."""
        if self.lpips is None and self.kind != "entropy":  # which codes what the encoder makes for any ρ
            return torch.zeros(len(key), device=key.device)
        u = draws.uniform(key, STREAM_RHO, 2)
        top = self.networks.config.rho_max
        between = torch.where(u[:, 0] < 0.8, torch.full_like(u[:, 1], top), u[:, 1] * top)
        return torch.where(u[:, 0] < 0.4, torch.zeros_like(between), between)


def repeating(error: Tensor, stride: int) -> Tensor:
    """How much (B,) of the mean squared error (B, 3, S, S) repeats from each position of y to the next, in windows of
    ALIKE² positions: an estimate that is 0 on average for errors that know nothing of the grid, and may be below.

    LPIPS wants fine texture, and what a network without noise makes most easily is a lattice that hangs on its grid, of
    periods of 2 to `stride` pixels: little squared error, but plain to see in smooth areas.
    """
    positions = F.pixel_unshuffle(error, stride)
    side = positions.shape[2] // max(1, positions.shape[2] // ALIKE)
    alike = F.avg_pool2d(positions, side).square().mean(dim=(1, 2, 3))
    return (side**2 * alike - error.square().mean(dim=(1, 2, 3))) / (side**2 - 1)


def _shared(values: Tensor, shares: Tensor) -> Tensor:
    """The mean of values (B,) weighted by shares (B,)."""
    return (values * shares).sum() / shares.sum().clamp(min=1e-6)


def views(picture: Tensor, original: Tensor, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both (B, 3, S, S) as LPIPS gets to see them, (B, 3, S − 3, S − 3): moved by the same 0 to 3 pixels down and
    right, mirrored, turned by quarters and with their colours exchanged at random (Kettunen et al. 2019, E-LPIPS,
    arXiv 1906.03973).

    LPIPS's first layers see every second or fourth pixel only: at a fixed place a decoder of 4 × 4 blocks learns to
    hide its grid from it. What is learned from one network's view of one direction and colour pleases no other.
    """
    u = draws.uniform(key, STREAM_VIEW, 8)
    side = torch.arange(original.shape[2] - SHIFTS + 1, device=original.device)
    places = side + (u[:, :2] * SHIFTS).long()[:, :, None]
    down, right = torch.where((u[:, 2:4] < 0.5)[:, :, None], places, places.flip(2)).unbind(1)
    turned, colours = (u[:, 4] < 0.5)[:, None, None, None], u[:, 5:].argsort(dim=1)

    def seen(whole: Tensor) -> Tensor:
        rows = whole.gather(2, down[:, None, :, None].expand(-1, 3, -1, whole.shape[3]))
        piece = rows.gather(3, right[:, None, None, :].expand(-1, 3, rows.shape[2], -1))
        piece = torch.where(turned, piece.mT, piece)
        return piece.gather(1, colours[:, :, None, None].expand_as(piece)).to(dtype)

    return seen(picture), seen(original)
