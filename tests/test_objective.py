"""What each kind of phase trains, and what LPIPS and the critic are shown."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from short_run import RECIPE, trainer

from cdcodec import weights
from cdcodec.cli import main
from cdcodec.config import PRESETS
from cdcodec.lab import critic, draws
from cdcodec.lab.export import export_run
from cdcodec.lab.objective import Phase, Weights, repeating
from cdcodec.lab.state import STATE, load_state
from cdcodec.lab.trainer import Trainer


class Distance(torch.nn.Module):
    """Stands in for LPIPS: the mean absolute difference (B, 1, 1, 1). Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.seen.append((a, b))
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture(autouse=True)
def lpips(monkeypatch: pytest.MonkeyPatch) -> Distance:
    """Instead of LPIPS."""
    distance = Distance()
    monkeypatch.setattr("cdcodec.lab.trainer.load_lpips", lambda *_: distance)
    return distance


def changed(run: Trainer) -> set[str]:
    """Names of the parameters that one step of the run changes."""
    before = [p.detach().clone() for p in run.parameters]
    run.step()
    return {name for name, p, old in zip(run.names, run.parameters, before, strict=True) if not torch.equal(p, old)}


def test_a_phase_for_the_entropy_model_leaves_the_rest_alone(photographs: Path) -> None:
    names = changed(trainer(photographs, dataclasses.replace(RECIPE, phases=(Phase("entropy", 2, 64, 8),))))
    assert {name.split(".")[0] for name in names} == {"hyper_analysis", "hyper_synthesis", "bottleneck"}


def test_a_phase_for_the_filter_leaves_the_rest_alone(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny-smooth", dataclasses.replace(PRESETS["tiny-x"], smoothing=True))
    recipe = dataclasses.replace(RECIPE, preset="tiny-smooth", phases=(Phase("smoothing", 2, 64, 8),))
    names = changed(trainer(photographs, recipe))
    assert names == {
        "synthesis.smoothing.place", "synthesis.smoothing.colours", "synthesis.smoothing.strictness.weight",
        "synthesis.smoothing.strictness.bias", "ladder.log_variance",
    }  # fmt: skip


def test_a_phase_for_the_decoder_leaves_the_files_alone(photographs: Path) -> None:
    recipe = dataclasses.replace(RECIPE, phases=(Phase("decoder", 2, 64, 8, lpips=0.5, critic=0.3),))
    names = changed(trainer(photographs, recipe))
    assert {name.split(".")[0] for name in names} == {"synthesis", "ladder"}
    assert {name for name in names if name.startswith("ladder")} == {"ladder.log_variance"}


def test_lpips_reaches_the_light_head_where_rho_asks_for_it(photographs: Path) -> None:
    told = {"synthesis.realism.weight", "synthesis.embed_rho.weight"}
    for kappa in (0.0, 0.5):
        run = trainer(photographs, dataclasses.replace(RECIPE, phases=(Phase("autoencoder", 4, 64, 8, lpips=kappa),)))
        run.step()  # before it the blocks pass no embedding on
        assert bool(told & changed(run)) == bool(kappa)
        assert ("base_lpips" in run.step()) == bool(kappa)


def every_view(side: int) -> Iterator[tuple[tuple[object, ...], torch.Tensor]]:
    """How (3, side, side) values may be looked at, and which of them (flat places, in order) are then seen."""
    values, flips, seen = torch.arange(3 * side**2).view(3, side, side), ((), (1,), (2,), (1, 2)), side - 3
    for down, right, flipped, turned in itertools.product(range(4), range(4), flips, (False, True)):
        piece = values[:, down : down + seen, right : right + seen].flip(flipped)
        for colours in itertools.permutations(range(3)):
            yield (down, right, flipped, turned, colours), (piece.mT if turned else piece)[list(colours)].reshape(-1)


def test_lpips_compares_both_pictures_in_one_view_that_is_drawn_anew(photographs: Path, lpips: Distance) -> None:
    run = trainer(photographs, dataclasses.replace(RECIPE, phases=(Phase("denoiser", 1, 64, 8),)))
    run.step()
    lpips.seen.clear()
    x, rho = torch.randn(600, 3, 16, 16).requires_grad_(), torch.full((600,), 0.9)
    distance, _ = run.objective.perceived(x, x.detach() + 1, draws.keys(1, 2, torch.arange(600)), rho, {})
    distance.sum().backward()
    ((a, b),) = lpips.seen
    assert torch.equal(a + 1, b)
    assert distance.shape == (600,)
    views, places = zip(*every_view(16), strict=True)
    drawn = [(of.flatten()[torch.stack(places)] == one.flatten()).all(dim=1) for of, one in zip(x, a, strict=True)]
    assert all(same.sum() == 1 for same in drawn)
    names = [views[int(same.int().argmax())] for same in drawn]
    assert len({name[:2] for name in names}) == 16
    assert len({name[2:] for name in names}) == 8 * 6
    assert x.grad is not None
    assert x.grad.count_nonzero() == a.numel()


def test_every_second_picture_is_seen_from_twice_as_far_away(photographs: Path, lpips: Distance) -> None:
    run = trainer(photographs, dataclasses.replace(RECIPE, phases=(Phase("denoiser", 1, 64, 8),)))
    run.step()
    lpips.seen.clear()
    a, b = (torch.randn(3, 3, 125, 125, requires_grad=True) for _ in range(2))
    distance = run.objective.distance(a, b)
    assert [x.shape for pair in lpips.seen for x in pair] == [(2, 3, 125, 125)] * 2 + [(1, 3, 62, 62)] * 2
    for whole, half in zip((a, b), lpips.seen[1], strict=True):
        fours = whole[1, :, :124, :124].unfold(1, 2, 2).unfold(2, 2, 2)
        assert torch.allclose(half[0], fours.mean(dim=(3, 4)), atol=1e-6)
    apart = [(x - y).abs().mean(dim=(1, 2, 3)) for x, y in lpips.seen]
    assert torch.equal(distance, torch.stack((apart[0][0], apart[1][0], apart[0][1])))
    distance.sum().backward()
    assert a.grad is not None
    assert all(one.abs().max() > 0 for one in a.grad)
    for few in (a[:1], a[:, :, :60, :60]):
        assert torch.allclose(run.objective.distance(few, few + 1), torch.ones(len(few)))


def test_of_an_error_only_what_hangs_on_the_grid_repeats() -> None:
    torch.manual_seed(1)
    noise = torch.randn(64, 3, 192, 192)
    assert repeating(noise, 16).mean().abs() < 1e-4
    pattern = torch.randn(64, 3, 16, 16)
    lattice = pattern.repeat(1, 1, 12, 12)
    found, whole = repeating(lattice + noise, 16), pattern.square().mean(dim=(1, 2, 3))
    assert torch.allclose(found, whole, rtol=0.1)
    # Windows of 128 pixels are judged one by one: what changes its sign between them repeats all the same.
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(128)
    wide = pattern.repeat(1, 1, 16, 16) * signs * signs[:, None]
    assert torch.allclose(repeating(wide, 16), whole, rtol=1e-4)


def test_what_repeats_counts_for_more(photographs: Path) -> None:
    recipe = dataclasses.replace(RECIPE, phases=(Phase("denoiser", 1, 64, 8),), weights=Weights(lattice=30.0))
    run = trainer(photographs, recipe)
    metrics = run.step()
    assert {"base_lattice", "lattice"} <= set(metrics)
    error, seen = torch.randn(8, 3, 64, 64), {}
    mse = error.square().mean(dim=(1, 2, 3))
    assert torch.allclose(run.objective.counted(error, mse, seen, "share"), mse + 30 * repeating(error, 16))
    assert torch.allclose(seen["share"], repeating(error, 16).sum() / mse.sum())
    plain = trainer(photographs, dataclasses.replace(recipe, weights=Weights()))
    assert not {"base_lattice", "lattice"} & set(plain.step())


def test_lpips_is_asked_only_where_rho_wants_it(photographs: Path) -> None:
    run = trainer(photographs, dataclasses.replace(RECIPE, phases=(Phase("denoiser", 1, 64, 8),)))
    run.step()
    x, key = torch.zeros(4, 3, 16, 16), draws.keys(1, 2, torch.arange(4))
    some, _ = run.objective.perceived(x, x + 1, key, torch.tensor([0.0, 0.9, 0.0, 0.3]), {})
    assert torch.equal(some, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    none, _ = run.objective.perceived(x, x + 1, key, torch.zeros(4), {})
    assert not none.any()


def test_a_run_with_a_critic_goes_on_exactly(photographs: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, phases=(Phase("autoencoder", 4, 64, 8, lpips=0.5, critic=0.3),))
    whole = trainer(photographs, recipe)
    for step in range(4):
        assert whole.step()["critic"] > 0
        if step == 1:
            torch.save(whole.state(), tmp_path / STATE)
    second = trainer(photographs, recipe)
    second.load(load_state(tmp_path))
    for _ in range(2):
        second.step()
    assert whole.critic is not None
    assert whole.critic.age == 4
    ours, theirs = ([*run.parameters, *run.critic.parameters()] for run in (whole, second))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    plain = dataclasses.replace(recipe, phases=(dataclasses.replace(recipe.phases[0], critic=0.0),))
    alone = trainer(photographs, plain)
    for _ in range(4):
        alone.step()
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters, alone.parameters, strict=True))


def test_the_critic_is_exported_and_the_next_training_begins_with_it(photographs: Path, tmp_path: Path) -> None:
    phase = Phase("autoencoder", 2, 64, 8, lpips=0.5, critic=0.3)
    first = trainer(photographs, dataclasses.replace(RECIPE, phases=(phase,)))
    first.step()
    torch.save(first.state(), tmp_path / STATE)
    out = tmp_path / "weights"
    export_run(tmp_path, out)
    preset = RECIPE.preset
    floats = weights.load_tensors(out, preset=preset)[0] | critic.beside(out / preset)
    assert {state for _, state in weights.verify(out)} == {"ok"}
    second = trainer(photographs, dataclasses.replace(RECIPE, seed=2, phases=(phase,)))
    second.start_from(floats)
    assert first.critic is not None
    assert second.critic is not None
    for a, b in zip(first.critic.state_dict().values(), second.critic.state_dict().values(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b.to(torch.bfloat16))
    assert second.critic.age == 1
    plain = trainer(photographs, RECIPE)
    plain.start_from(floats)  # a training without a critic has no use for it
    assert plain.critic is None
    assert critic.beside(tmp_path) == {}
    torch.save(plain.state(), tmp_path / STATE)
    export_run(tmp_path, out, force=True)  # and leaves it where it is
    assert critic.beside(out / preset).keys() == {name for name in floats if name.startswith("critic.")}


def test_train_start_goes_on_with_the_critic(photographs: Path, tmp_path: Path) -> None:
    phase = '[[phase]]\nsteps = 1\ncrop = 64\nbatch = 8\nlpips = 0.5\ncritic = 0.3\n'
    (tmp_path / "recipe.toml").write_text(f'preset = "{RECIPE.preset}"\n{phase}')
    common = ["train", "--images", str(photographs), "--recipe", str(tmp_path / "recipe.toml"), "-q", "--out"]
    for run, more in (("first", []), ("second", ["--start", str(tmp_path)])):
        assert CliRunner().invoke(main, [*common, str(tmp_path / run), *more]).exit_code == 0
        assert CliRunner().invoke(main, ["export", "--force", str(tmp_path / run), str(tmp_path)]).exit_code == 0
    assert critic.beside(tmp_path / RECIPE.preset)["critic.age"] == 2
