"""Muon for the convolutions: momentum, made orthogonal (K. Jordan et al. 2024, github KellerJordan/Muon)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
OUTPUTS = ("analysis.out.weight", "synthesis.head.weight", "synthesis.realism.weight", "unet.head.weight")
"""Kernels whose output is a latent or a picture: what is added there must be small, and Muon's steps have one size."""
FAR = ("ladder.log_", "bottleneck.", "analysis.embed_rho.", "synthesis.embed_rho.", "synthesis.smoothing.")


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16, iterations: int = 5) -> Tensor:
    """(N, rows, cols), rows ≤ cols → matrices of the same row space with singular values near 1, in `dtype`."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update, each weight reshaped to (c_out, the rest), is orthogonalised.

    lr, a number or a 0-dim tensor, is multiplied by √max(1, rows/cols). Weights of equal shape are treated in one
    batch, in `dtype`: float32 where bfloat16 would be emulated.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float | Tensor,
        dtype: torch.dtype = torch.bfloat16,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[(p.shape[0], p.numel() // p.shape[0])].append(p)
            for (rows, columns), parameters in shapes.items():
                self._update(parameters, rows, columns, group["lr"], group["momentum"])

    def _update(
        self, parameters: list[Tensor], rows: int, columns: int, lr: float | Tensor, momentum: float
    ) -> None:
        gradients, buffers = [], []
        for p in parameters:
            assert p.grad is not None, "only parameters with a gradient get here"
            gradients.append(p.grad)
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum"])
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)
        stacked = torch.stack([update.reshape(rows, columns) for update in updates])
        upright = orthogonalise(stacked.mT if rows > columns else stacked, self.dtype)
        flat = (upright.mT if rows > columns else upright).to(stacked.dtype) * (lr * max(1, rows / columns) ** 0.5)
        torch._foreach_sub_(parameters, [update.reshape(p.shape) for p, update in zip(parameters, flat, strict=True)])


class Split(NamedTuple):
    """Parameters by what trains them.

    muon: convolution kernels between hidden channels. adam: all others but `far`.
    far: gains, their inverses, s², the density of z, how ρ is told and the bilateral filter: few numbers that have far
        to go, by AdamW at a rate of its own.
    """

    muon: list[Tensor]
    adam: list[Tensor]
    far: list[Tensor]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> Split:
        split = cls([], [], [])
        for name, p in named:
            kernel = p.ndim == 4 and p.numel() // p.shape[0] > 1 and "hyper" not in name
            if name.startswith(FAR):
                split.far.append(p)
            else:
                (split.muon if kernel and name not in OUTPUTS else split.adam).append(p)
        return split
