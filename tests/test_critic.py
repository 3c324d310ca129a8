"""The critic: it learns, nobody learns for the other, and its share of the gradient is what was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from cdcodec.lab.critic import Critic, Shared


def test_a_judge_shares_the_picture_by_the_norm_of_its_gradient() -> None:
    picture = torch.zeros(2, 3, 4, 4, requires_grad=True)
    a, b = Shared.apply(picture, torch.tensor(0.5))
    first, second = torch.randn(2, 2, 3, 4, 4)
    ((a * first).sum() + 1000 * (b * second).sum()).backward()
    more = picture.grad - first
    assert torch.allclose(more.flatten(1).norm(dim=1), 0.5 * first.flatten(1).norm(dim=1), rtol=1e-4)
    assert (torch.cosine_similarity(more.flatten(1), second.flatten(1)) > 0.9999).all()


def test_a_critic_learns_and_nobody_learns_for_the_other() -> None:
    torch.manual_seed(0)
    critic = Critic(16)
    originals = torch.rand(4, 3, 67, 66) * 2 - 1
    decoded = torch.nn.functional.avg_pool2d(originals, 3, 1, 1).requires_grad_()
    optimiser = torch.optim.Adam(critic.parameters(), 0.002)
    seen = []
    for _ in range(30):
        optimiser.zero_grad()
        _, its = critic.losses(decoded, originals)
        its.backward()
        seen.append(its.item())
        optimiser.step()
    assert seen[0] == pytest.approx(math.log(2), abs=0.3)
    assert seen[-1] < 0.3
    assert decoded.grad is None
    optimiser.zero_grad()
    critic.losses(decoded, originals)[0].backward()
    assert decoded.grad is not None
    assert decoded.grad[:, :, :64, :64].abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())
