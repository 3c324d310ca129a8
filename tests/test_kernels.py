"""What runs on a GPU alone: the filter's kernels, here in Triton's interpreter, and the step as a graph."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from short_run import RECIPE, trainer

from cdcodec.errors import TrainingError
from cdcodec.lab.data import Photographs
from cdcodec.lab.objective import Phase
from cdcodec.lab.optim import Muon
from cdcodec.lab.trainer import Trainer
from cdcodec.lab.world import World

COMPARED = """
import torch
from cdcodec.nets import kernels
from cdcodec.nets.smoothing import HALF, RADIUS, Mixture

torch.manual_seed(0)
wide, guide, place = torch.rand(2, 3, 21, 27), 3 * torch.rand(2, 3, 21, 27), 0.3 * torch.randn(len(HALF))
inputs = [tensor.requires_grad_() for tensor in (wide, guide, place)]
mixed = Mixture.apply(*inputs)
gradient = torch.randn_like(mixed)
expected = [mixed.detach(), *torch.autograd.grad(mixed, inputs, gradient)]
plain = [tensor.detach() for tensor in inputs]
found, weights = kernels.mix(*plain, HALF, RADIUS)
found = [found, *kernels.unmix(*plain, found, weights, gradient, HALF, RADIUS)]
for ours, theirs in zip(found, expected, strict=True):
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with PyTorch for CUDA alone")
def test_the_kernels_do_what_the_filter_does() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPARED], env=environment, check=True, timeout=120)


def test_muon_takes_its_rate_as_a_number_or_a_tensor() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    ends = []
    for lr in (0.25, torch.tensor(0.25)):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        Muon([weight], lr, torch.float32).step()
        ends.append(weight.detach())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], start)


def test_a_graph_steps_over_a_gradient_that_is_not_finite_and_says_so_later(photographs: Path) -> None:
    run = trainer(photographs)
    run.graph = True  # what it does to gradients; none is captured here
    own, judge = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    own.grad, judge.grad = torch.tensor([1.0, float("nan"), 2.0]), torch.ones(3)
    norm = run._clip([own], [judge])
    assert not own.grad.any()
    assert not judge.grad.any()
    run.look([torch.tensor(1.0)])
    with pytest.raises(TrainingError, match="not finite shortly before step 0"):
        run.look([torch.tensor(1.0), norm])
    assert run.updating, "the state is not saved"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph is captured on a GPU")
def test_a_graph_takes_the_same_steps(photographs: Path) -> None:
    losses, phases = [], (Phase("autoencoder", 6, 64, 8), Phase("joint", 6, 64, 8))
    for graph in (False, True):
        place = torch.device("cuda")
        recipe = dataclasses.replace(RECIPE, phases=phases)
        run = Trainer(recipe, Photographs(photographs, place, 64), place, World(), graph=graph)
        losses.append([run.step()["loss"].item() for _ in range(12)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
