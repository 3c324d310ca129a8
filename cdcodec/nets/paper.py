"""The authors' encoder, context decoder and U-Net (github buggyyang/CDC_compression), with the interface of ours.

A module of its own, because nothing but the interface is common with the compact networks: normalisation behind the
convolutions, the embedding as a shift, global attention, resampling by strided and transposed convolutions, skips at
all resolutions but the finest. Algebra, not approximation, makes it faster than the original: convolutions over
[x, context] are split, attention is folded into one matrix per picture and its sums go row by row, and the last
convolution makes four pixels at once.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.layers import Conv2d, Linear, added, conv3

FIRST_KERNEL = 7
"""Side of the convolutions that see pixels; all others are 3×3."""


class ConvTranspose2d(nn.ConvTranspose2d):
    """Twice the resolution, by a 4×4 kernel; weights follow the dtype of the input."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 4, 2, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv_transpose2d(x, self.weight.to(x.dtype), bias, 2, 1)


class Head(Conv2d):
    """The last convolution, to three channels: too few for matrix units, so 2 × 2 pixels are made as twelve channels.

    (B, C, H, W) → (B, 3, H, W), H and W even: the k × k kernel becomes one of (k + 1) × (k + 1) and stride 2, in which
    it stands at four places.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, FIRST_KERNEL, padding=FIRST_KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        places = [F.pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
        bias = None if self.bias is None else self.bias.to(x.dtype).repeat_interleave(4)
        pixels = F.conv2d(x, torch.stack(places, dim=1).flatten(0, 1), bias, 2, FIRST_KERNEL // 2)
        return F.pixel_shuffle(pixels, 2)


class Norm(nn.Module):
    """Zero mean and unit variance over the channels at each pixel, then a gain and an offset per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape, channels last in memory."""
        return self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def last(self, x: Tensor) -> Tensor:
        """The same for (…, C)."""
        return F.layer_norm(x, (len(self.weight),), self.weight.to(x.dtype), self.bias.to(x.dtype))


class Block(nn.Module):
    """Residual block, shifted by an embedding and optionally told a context.

        [x, context] ── conv ── norm ── ReLU ── + shift ── conv ── norm ── ReLU ── + ──
              └──────────────── (1×1 conv if channels change) ─────────────────────┘

    Shapes: x (B, c_in, H, W), embedding (B, E) float32. Both convolutions over [x, context] are split, so that what
    the context gives (`contribute`) is computed once and used at every step.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 3, context: int = 0, embedding: int = 0) -> None:
        super().__init__()
        self.conv1 = Conv2d(c_in, c_out, kernel, padding=kernel // 2)
        self.norm1 = Norm(c_out)
        self.shift = Linear(embedding, c_out) if embedding else None
        self.conv2 = conv3(c_out, c_out)
        self.norm2 = Norm(c_out)
        self.shortcut = Conv2d(c_in, c_out, 1) if context or c_in != c_out else nn.Identity()
        self.context_conv = Conv2d(context, c_out, kernel, padding=kernel // 2, bias=False) if context else None
        self.context_shortcut = Conv2d(context, c_out, 1, bias=False) if context else None

    def contribute(self, context: Tensor) -> list[Tensor]:
        """Context (B, c, H, W) → what it adds to the first convolution and to the shortcut, each (B, c_out, H, W)."""
        if self.context_conv is None or self.context_shortcut is None:
            raise ValueError("this block takes no context")
        return [self.context_conv(context), self.context_shortcut(context)]

    def forward(self, x: Tensor, embedding: Tensor | None = None, contribution: list[Tensor] | None = None) -> Tensor:
        h, shortcut = self.conv1(x), self.shortcut(x)
        if contribution is not None:
            h, shortcut = h.add_(contribution[0]), shortcut.add_(contribution[1])  # of convolutions: own memory
        h = F.relu(self.norm1(h), inplace=True)
        if self.shift is not None and embedding is not None:
            h = added(h, self.shift(F.leaky_relu(embedding, 0.2))[:, :, None, None].to(h.dtype))
        return added(F.relu(self.norm2(self.conv2(h)), inplace=True), shortcut)


class Attention(nn.Module):
    """x + linear attention of the normalised x over all pixels, one head (Shen et al. 2021, arXiv 1812.01243).

    Theirs: out = W_o·Cᵀ·(s·W_q·x̂) + b, with C = softmax_pixels(W_k·x̂)·(W_v·x̂)ᵀ and s = 1/√channels. Only the keys are
    materialised here: the values' matrix moves behind the sum over pixels, and W_o·Cᵀ·s·W_q is a single matrix.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        query, key, value, out = torch.randn(4, channels, channels) * channels**-0.5
        self.query, self.key = nn.Parameter(query), nn.Parameter(key)
        self.value, self.out = nn.Parameter(value), nn.Parameter(out)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        batch, channels, height, width = x.shape
        pixels = self.norm.last(x.permute(0, 2, 3, 1))
        keys = pixels @ self.key.t().to(x.dtype)
        keys = keys.sub_(keys.detach().amax(dim=(1, 2), keepdim=True)).exp_()
        mass = keys.sum(dim=2).sum(dim=1, dtype=torch.float32)[:, :, None]
        rows = keys.flatten(0, 1).transpose(1, 2) @ pixels.flatten(0, 1)
        total = rows.unflatten(0, (batch, height)).sum(dim=1, dtype=torch.float32)
        context = total @ self.value.t().float() / mass
        matrix = self.out.float() @ context.transpose(1, 2) @ self.query.float() * channels**-0.5
        out = torch.baddbmm(self.bias.to(x.dtype), pixels.flatten(1, 2), matrix.transpose(1, 2).to(x.dtype))
        return added(out.unflatten(1, (height, width)).permute(0, 3, 1, 2), x)


class Analysis(nn.Module):
    """g_a(x): picture (B, 3, H, W) in [-1, 1] → y (B, C_y, H/16, W/16). Knows one λ and one ρ, so it ignores them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = (3, *config.analysis_widths)
        self.levels = nn.ModuleList(
            Block(a, b, kernel=3 if i else FIRST_KERNEL) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.downs = nn.ModuleList(conv3(width, width, stride=2) for width in config.analysis_widths)

    def forward(self, x: Tensor, condition: Tensor, rho: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        for block, down in zip(self.levels, self.downs, strict=True):
            x = down(block(x))
        return x


class Synthesis(nn.Module):
    """g_c(ŷ): decoded latent (B, C_y, h, w) → context pyramid, finest first: (B, C_0, 16h, 16w), …, (B, C_3, 2h, 2w)
    in `dtype`, and None, having no light head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        channels = config.latent
        for out in reversed(_pyramid_widths(config)):
            width = channels if len(self.levels) == len(config.analysis_widths) - 1 else out
            self.levels.append(Block(channels, width))
            self.ups.append(ConvTranspose2d(width, out))
            channels = out

    def forward(self, latent: Tensor, condition: Tensor, rho: Tensor, dtype: torch.dtype) -> tuple[list[Tensor], None]:
        h = latent.to(dtype)
        pyramid: list[Tensor] = []
        for block, up in zip(self.levels, self.ups, strict=True):
            h = up(block(h))
            pyramid.insert(0, h)
        return pyramid, None


class HyperAnalysis(nn.Module):
    """h_a: y (B, C_y, h, w) → z (B, C_z, ⌈h/4⌉, ⌈w/4⌉), float32; its medians are not yet taken off."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a, b = config.hyper_widths
        self.layers = nn.ModuleList(
            (conv3(config.latent, a), Conv2d(a, b, 5, 2, 2), Conv2d(b, config.hyper, 5, 2, 2))
        )

    def forward(self, y: Tensor) -> Tensor:
        h = self.layers[0](y)
        for layer in self.layers[1:]:
            h = layer(F.leaky_relu(h, 0.2))
        return h


class Level(nn.Module):
    """Two blocks and attention at one resolution of the U-Net."""

    def __init__(self, c_in: int, c_out: int, embedding: int, *, kernel: int = 3, context: int = 0) -> None:
        super().__init__()
        self.block1 = Block(c_in, c_out, kernel=kernel, context=context, embedding=embedding)
        self.block2 = Block(c_out, c_out, embedding=embedding)
        self.attention = Attention(c_out)

    def forward(self, x: Tensor, embedding: Tensor, contribution: list[Tensor] | None = None) -> Tensor:
        return self.attention(self.block2(self.block1(x, embedding, contribution), embedding))


class UNet(nn.Module):
    """x_t (B, 3, H, W) → the prediction (B, 3, H, W) float32, given context and time.

        x ─ level ─↓2─ level ─↓2─ … ─ level ─ block ─ attn ─ block ─ cat ─ level ─↑2─ … ─ cat ─ level ─↑2─
                         │              └─────────────────────────────────┘                     │
                         └──────────────────────────────────────────────────────────────────────┘

    The finest levels, as many as the pyramid has, are told the context of their resolution; the very finest has no
    skip.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, e = config.unet_widths, config.embedding
        contexts = _pyramid_widths(config)
        contexts += (0,) * (len(widths) - len(contexts))
        self.embed_in, self.embed_out = Linear(1, 4 * e), Linear(4 * e, e)
        self.down_levels = nn.ModuleList(
            Level(a, b, e, kernel=3 if i else FIRST_KERNEL, context=contexts[i])
            for i, (a, b) in enumerate(pairwise((3, *widths)))
        )
        self.downs = nn.ModuleList(conv3(width, width, stride=2) for width in widths[:-1])
        self.middle1 = Block(widths[-1], widths[-1], embedding=e)
        self.middle_attention = Attention(widths[-1])
        self.middle2 = Block(widths[-1], widths[-1], embedding=e)
        self.up_levels = nn.ModuleList(Level(2 * b, a, e) for a, b in reversed(list(pairwise(widths))))
        self.ups = nn.ModuleList(ConvTranspose2d(width, width) for width in reversed(widths[:-1]))
        self.norm = Norm(widths[0])
        self.head = Head(widths[0])

    def embed(self, time: Tensor) -> Tensor:
        """Time (B,) in [0, 1) → embedding (B, E) float32."""
        return self.embed_out(F.gelu(self.embed_in(time[:, None])))

    def contributions(self, pyramid: list[Tensor]) -> list[list[Tensor]]:
        """What each level of the context pyramid adds inside its block; the same at every step."""
        blocks = [level.block1 for level in self.down_levels if isinstance(level, Level)]
        return [block.contribute(c) for block, c in zip(blocks, pyramid, strict=False)]

    def forward(self, x: Tensor, embedding: Tensor, contributions: list[list[Tensor]]) -> Tensor:
        skips: list[Tensor] = []
        for i, level in enumerate(self.down_levels):
            x = level(x, embedding, contributions[i] if i < len(contributions) else None)
            if i:
                skips.append(x)
            x = self.downs[i](x) if i < len(self.downs) else x
        x = self.middle2(self.middle_attention(self.middle1(x, embedding)), embedding)
        for level, up in zip(self.up_levels, self.ups, strict=True):
            x = up(level(torch.cat((x, skips.pop()), dim=1), embedding))
        return self.head(self.norm(x)).float()


def _pyramid_widths(config: ModelConfig) -> tuple[int, ...]:
    return (config.context, *config.analysis_widths[:-1])
