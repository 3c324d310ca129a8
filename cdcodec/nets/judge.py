"""LPIPS by SqueezeNet, which the encoder asks how a latent will look: v0.1 of Zhang et al. 2018 (arXiv 1801.03924) over
SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360). The same function as the package lpips, which nothing needs that
only encodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

STAGES = ((True, (3, 4)), (True, (6, 7)), (True, (9,)), (False, (10,)), (False, (11,)), (False, (12,)))
"""Behind the first convolution: whether the map is pooled, then fire modules by torchvision's numbers. LPIPS compares
what each stage ends with."""
PARTS = ("squeeze", "expand1x1", "expand3x3")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST = 64
"""Least side in pixels of a picture it is asked about."""


class Judge:
    """The distance of two pictures in one precision, on one device.

    tensors: features.<n>.… of torchvision's squeezenet1_1 and lins.<k> (C,), the weights of LPIPS's seven comparisons.
    Raises ValueError for others.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        layers = {name: value.to(device, torch.float32) for name, value in tensors.items()}
        shift, scale = (torch.tensor(v, device=device)[None, :, None, None] for v in (SHIFT, SCALE))
        names = ["features.0", *(f"features.{n}.{part}" for _, fires in STAGES for n in fires for part in PARTS)]
        try:
            self.lins = [layers[f"lins.{k}"].to(dtype) for k in range(1 + len(STAGES))]
            self.layers = {name: (layers[f"{name}.weight"], layers[f"{name}.bias"]) for name in names}
        except KeyError as error:
            raise ValueError(f"this is no judge: it has no {error}") from None
        weight, bias = self.layers["features.0"]  # without padding, so that the scaling of the colours goes into it
        self.layers["features.0"] = weight / scale, bias - (weight * (shift / scale)).sum(dim=(1, 2, 3))
        self.layers = {name: (w.to(dtype), b.to(dtype)) for name, (w, b) in self.layers.items()}
        self.dtype = dtype

    def features(self, picture: Tensor) -> list[Tensor]:
        """Of (B, 3, H, W) in [-1, 1], at least SMALLEST a side: what the seven stages end with, (B, C, h, w)."""
        x = picture.to(self.dtype).contiguous(memory_format=torch.channels_last)
        h = self._conv(x, "features.0", stride=2).relu_()
        found = [h]
        for pooled, fires in STAGES:
            if pooled:
                h = F.max_pool2d(h, 3, 2, ceil_mode=True)
            for number in fires:
                h = self._fire(h, f"features.{number}")
            found.append(h)
        return found

    def distance(self, picture: Tensor, original: Tensor) -> Tensor:
        """LPIPS, float32 (B,), of pictures (B, 3, H, W) in [-1, 1]; with a gradient for the first alone."""
        with torch.no_grad():
            known = self.features(original)
        stages = zip(self.lins, self.features(picture), known, strict=True)
        return torch.stack([_apart(a, b, lin) for lin, a, b in stages]).sum(dim=0)

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, *self.layers[name], stride, padding)

    def _fire(self, x: Tensor, name: str) -> Tensor:
        h = self._conv(x, f"{name}.squeeze").relu_()
        wide = self._conv(h, f"{name}.expand1x1"), self._conv(h, f"{name}.expand3x3", padding=1)
        return torch.cat(wide, dim=1).relu_()


def _apart(a: Tensor, b: Tensor, lin: Tensor) -> Tensor:
    """Mean over the places of Σ lin·(a/‖a‖ − b/‖b‖)² over the channels, float32 (B,), of maps (B, C, h, w).

    Multiplied out, so that no map but a² and a·b is kept for the gradient: three sums over channels.
    """
    with torch.no_grad():
        b = b / (b.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
        weighted = lin[:, None, None] * b
        constant = (weighted * b).sum(dim=1).float()
    both = torch.stack((torch.ones_like(lin), lin))[:, :, None, None]
    norm, own = F.conv2d(a.square(), both).float().unbind(1)
    norm = norm + 1e-10
    return (own / norm - 2 * (a * weighted).sum(dim=1).float() / norm.sqrt() + constant).mean(dim=(1, 2))
