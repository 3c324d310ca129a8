"""Training: every draw repeatable, resume exact, two processes equal to one, and it learns."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from short_run import CPU, RECIPE, trainer

from cdcodec import codec
from cdcodec.cli import main
from cdcodec.config import PRESETS
from cdcodec.errors import ImageError, OutputError, TrainingError, WeightsError
from cdcodec.lab import draws
from cdcodec.lab import train as training
from cdcodec.lab.data import Photographs, find_images
from cdcodec.lab.export import export_run
from cdcodec.lab.objective import Phase, Weights
from cdcodec.lab.optim import orthogonalise
from cdcodec.lab.recipe import Recipe, load_recipe, parse_recipe
from cdcodec.lab.state import STATE, load_state, save_state
from cdcodec.lab.train import train
from cdcodec.lab.trainer import Trainer
from cdcodec.weights import about, find, load_model, load_tensors, verify


def test_draws_depend_on_seed_step_and_sample_alone() -> None:
    samples = torch.arange(6)
    key = draws.keys(1, 7, samples)
    assert torch.equal(draws.uniform(key, 3, 50)[4:5], draws.uniform(draws.keys(1, 7, samples[4:5]), 3, 50))
    others = [draws.uniform(key, 4, 50), *(draws.uniform(draws.keys(*k, samples), 3, 50) for k in ((2, 7), (1, 8)))]
    for other in others:
        assert not torch.equal(draws.uniform(key, 3, 50), other)


def test_draws_are_uniform_normal_and_uncorrelated() -> None:
    key = draws.keys(5, 11, torch.arange(4))
    u, n = draws.uniform(key, 1, 50_000).double(), draws.normal(key, 2, 50_001).double()
    assert u.min() > 0
    assert u.max() < 1
    histogram = torch.histc(u, 64, 0, 1)
    chi2 = ((histogram - histogram.mean()) ** 2 / histogram.mean()).sum().item()
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)
    for moment, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert n.pow(moment).mean().item() == pytest.approx(expected, abs=0.06)
    both = torch.cat((u, u.roll(1, 1), n[:, :50_000]))
    assert (torch.corrcoef(both) - torch.eye(len(both))).abs().max() < 0.03


def test_crops_are_pieces_of_the_pictures(tmp_path: Path) -> None:
    """A picture whose pixels say where they are: crops must be contiguous, half of them mirrored."""
    y, x = np.mgrid[:100, :140].astype(np.uint8)
    Image.fromarray(np.stack((y, x, np.full_like(x, 9)), 2)).save(tmp_path / "where.png")
    photographs = Photographs(tmp_path, CPU, 64)
    crops = photographs.crops(draws.keys(0, 0, torch.arange(40)), 64).add(1).mul(127.5).round().long()
    steps = crops[:, 1, :, 1:] - crops[:, 1, :, :-1]
    assert torch.equal(steps.amin(dim=(1, 2)), steps.amax(dim=(1, 2)))
    assert 8 < (steps[:, 0, 0] == -1).sum() < 32
    assert (crops[:, 0, 1:] - crops[:, 0, :-1] == 1).all()
    assert len(crops[:, 0, 0, 0].unique()) > 10


def test_hidden_pictures_and_what_the_run_itself_draws_are_left_out(photographs: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "photos", tmp_path / "photos" / "runs" / "a"
    shutil.copytree(photographs, folder)
    names = [path.relative_to(folder) for path in find_images(folder)]
    for path in (folder / "._where.png", folder / ".thumbnails" / "where.png", run / "validation-0000001.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "coffee.png", path)
    (folder / "album.png").mkdir()
    assert [path.relative_to(folder) for path in find_images(folder, run)] == names
    assert len(find_images(folder)) == len(names) + 1


def test_on_a_cpu_a_slow_step_is_told_and_timed_at_once(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOOK_SECONDS", 0.0)
    train(photographs, tmp_path, RECIPE, device="cpu", precision="float32", quiet=True, minutes=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 1]
    assert load_state(tmp_path)["step"] == 1


def test_a_run_that_goes_on_with_other_photographs_says_so(photographs: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photographs, folder)

    def notes() -> list[str]:
        train(folder, run, RECIPE, device="cpu", precision="float32", quiet=True)
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        return [line["note"] for line in lines if "note" in line]

    assert [len(notes()), len(notes())] == [1, 2]
    shutil.copy(folder / "coffee.png", folder / "coffee-2.png")
    assert "the run had 3 photographs" in notes()[-1]


def test_training_lowers_the_loss(photographs: Path) -> None:
    recipe = dataclasses.replace(RECIPE, warmup=5, ramp=0.0, lr_adam=0.01, phases=(Phase("autoencoder", 60, 64, 8),))
    run = trainer(photographs, recipe)
    before = [run.step()["loss"].item() for _ in range(50)][:10]
    run.step_count = 0  # the same crops and draws again
    after = [run.step()["loss"].item() for _ in range(10)]
    assert np.mean(after) < 0.95 * np.mean(before)


def test_a_stopped_run_goes_on_exactly(photographs: Path, tmp_path: Path) -> None:
    whole = trainer(photographs)
    for _ in range(4):
        whole.step()
    first = trainer(photographs)
    for _ in range(2):
        first.step()
    torch.save(first.state(), tmp_path / STATE)
    second = trainer(photographs)
    second.load(load_state(tmp_path))
    for _ in range(2):
        second.step()
    for name in ("parameters", "average"):
        for a, b in zip(whole.state()[name], second.state()[name], strict=True):
            assert torch.equal(a, b)


def test_a_phase_begins_with_the_averages_and_soon_forgets_them(photographs: Path) -> None:
    still = dataclasses.replace(RECIPE, lr_muon=1e-30, lr_adam=1e-30, lr_far=1e-30)
    run = trainer(photographs, still)
    for count in range(3):
        if count == 2:  # of two phases of two steps
            run.average[0].add_(1)
        before = run.average[0].clone()
        run.step()
        assert torch.equal(run.parameters[0], before)
    late = load_recipe("compact-x").resized(0.01)
    end = late.steps - late.phases[-1].steps
    assert math.prod(1 - late.fresh_at(step) for step in range(end, late.steps)) < 1e-3


def test_a_gradient_that_is_not_finite_changes_nothing(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(photographs)
    run.step()
    before = [p.detach().clone() for p in run.parameters]
    monkeypatch.setattr(run.photographs, "crops", lambda key, side: torch.full((len(key), 3, side, side), math.nan))
    with pytest.raises(TrainingError, match="not finite at step 1"):
        run.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert run.step_count == 1


def test_two_processes_have_the_gradients_of_one(photographs: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533",
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}  # fmt: skip
    command = [sys.executable, "-W", "ignore", str(script), str(photographs), str(tmp_path)]
    processes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    shared = torch.load(tmp_path / "gradients.pt", weights_only=True)
    alone = trainer(photographs, dataclasses.replace(RECIPE, clip=1e9, phases=(Phase("joint", 1, 64, 8),)))
    alone.step()
    ours = [p.grad for p in alone.parameters if p.grad is not None]
    largest = max(g.abs().max() for g in ours)
    for a, b in zip(ours, shared, strict=True):
        assert (a - b).norm() <= 1e-5 * max(a.norm(), 1e-3 * largest)


def test_muon_makes_updates_orthogonal() -> None:
    matrices = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_run_from_start_to_checkpoints_and_on_from_them(photographs: Path, tmp_path: Path) -> None:
    train(photographs, tmp_path / "run", RECIPE, validation=photographs, device="cpu", precision="float32", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["validation"][0]["lambda"] == 0.0024
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    assert next((tmp_path / "run").glob("validation-*.png")).stat().st_size > 1000
    export_run(tmp_path / "run", tmp_path / "weights")
    metadata = about(tmp_path / "weights", preset="tiny-x")
    assert metadata["steps"] == str(RECIPE.steps)
    assert metadata["data"].startswith("3 photographs, ")
    model = load_model(tmp_path / "weights", preset="tiny-x", device="cpu", precision="float32")
    assert len(model.ladder) == 8
    assert model.config.lambda_eff(0.5) == 0.5  # as trained, which is not as of the weights that ship
    floats, _, _ = load_tensors(tmp_path / "weights", preset="tiny-x")
    again = trainer(photographs)
    again.start_from(floats)
    averaged = load_state(tmp_path / "run")["average"]
    for (name, p), value in zip(again.networks.named_parameters(), averaged, strict=False):
        assert torch.allclose(p, value, atol=0.01 * value.abs().max().item() + 1e-6), name
    assert again.step()["loss"].isfinite()


def test_another_denoiser_for_the_same_files(
    photographs: Path, photograph: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compact-eps in small: only the U-Net is trained and shipped, and it reads what compact-x wrote."""
    small = dataclasses.replace(
        PRESETS["tiny-x"], preset="tiny-eps", parametrisation="eps", shares="tiny-x", rho_max=0.0, rho=0.0
    )
    monkeypatch.setitem(PRESETS, "tiny-eps", small)
    root = tmp_path / "weights"
    save_run(trainer(photographs), tmp_path / "x", root)
    floats, integers, _ = load_tensors(root, preset="tiny-x")
    data = codec.encode(photograph, load_model(root, preset="tiny-x", device="cpu"), 0.0128)

    recipe = tmp_path / "eps.toml"
    recipe.write_text("preset = 'tiny-eps'\n[[phase]]\nkind = 'noise'\nsteps = 2\nbatch = 8\ncrop = 64\n")
    words = ["--images", photographs, "--out", tmp_path / "cli", "--recipe", recipe, "--quiet", "--device", "cpu"]
    done = CliRunner().invoke(main, ["train", *map(str, words)])
    assert (done.exit_code, "files of tiny-x: name its weights by --start" in done.output) == (1, True)
    done = CliRunner().invoke(main, ["train", *map(str, [*words, "--start", root, "--valid", photographs])])
    assert done.exit_code == 0, done.output
    last = json.loads((tmp_path / "cli" / "log.jsonl").read_text().splitlines()[-1])
    assert all(math.isfinite(value) for row in last["validation"] for value in row.values())

    noise = Recipe(preset="tiny-eps", warmup=1, lr_adam=0.01, phases=(Phase("noise", 20, 64, 8),))
    run = trainer(photographs, dataclasses.replace(noise, weights=Weights(lambda_scale=2.0)))
    run.start_from(floats)
    losses = [run.step()["loss"].item() for _ in range(20)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    save_run(run, tmp_path / "eps", root)
    stored = load_file(root / "tiny-eps" / "base.safetensors")
    assert {name.split(".")[0] for name in stored} == {"unet"}
    both, same, config = load_tensors(root, preset="tiny-eps")
    # λ_eff is that of the files, not of its own recipe.
    assert config == dataclasses.replace(small, lambda_scale=1.0, lambda_power=1.0)
    assert all(torch.equal(value, both[name]) for name, value in floats.items() if not name.startswith("unet."))
    assert any(not torch.equal(value, both[name]) for name, value in floats.items())
    assert all(torch.equal(value, same[name]) for name, value in integers.items())

    noisy = load_model(root, preset="tiny-eps", device="cpu")
    pixels = [codec.decode(data, noisy, steps=n)[0] for n in (0, 9)]
    assert (pixels[0] != pixels[1]).any()
    assert codec.decode(data, noisy, gamma=0.5, seed=3)[0].shape == photograph.shape
    written = find(root, checkpoint=noisy.id)
    assert written.preset == "tiny-x"
    assert all(verdict == "ok" for _, verdict in verify(root))
    run.average[run.names.index("synthesis.stem.weight")].mul_(2)  # for another decoder of the same files
    save_state(tmp_path / "eps", run.state())
    with pytest.raises(WeightsError, match="tiny-eps was trained on other weights"):
        export_run(tmp_path / "eps", root, force=True)
    (root / "tiny-x" / "base.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError, match="another tiny-x"):
        load_tensors(root, preset="tiny-eps")


def test_export_replaces_weights_by_force_only_and_when_all_is_made(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, root = trainer(photographs), tmp_path / "weights"
    save_run(run, tmp_path / "run", root)
    before = {path: path.read_bytes() for path in (root / "tiny-x").iterdir()}
    with pytest.raises(OutputError, match="--force"):
        export_run(tmp_path / "run", root)
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "torn.png").write_bytes((photographs / "coffee.png").read_bytes()[:5000])
    with pytest.raises(ImageError, match=r"torn\.png"):
        export_run(tmp_path / "run", root, tmp_path / "valid", force=True)
    assert {path: path.read_bytes() for path in (root / "tiny-x").iterdir()} == before
    (root / "tiny-x" / "NOTES").write_text("not ours")
    run.step()
    save_state(tmp_path / "run", run.state())
    written = export_run(tmp_path / "run", root, force=True)
    assert {path.name for path in written} == {path.name for path in before} | {"NOTES"}
    assert about(root, preset="tiny-x")["steps"] == "1"
    assert [path.name for path in root.iterdir()] == ["tiny-x"]
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == root / "tiny-x" and path.name != "before":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_run(tmp_path / "run", root, force=True)
    assert {path.name for path in (root / "tiny-x").iterdir()} == {path.name for path in written}
    assert [path.name for path in root.iterdir()] == ["tiny-x"]
    state = run.state() | {"average": [value[:1] for value in run.average]}
    save_state(tmp_path / "run", state)
    with pytest.raises(TrainingError, match="present tiny-x"):
        export_run(tmp_path / "run", root, force=True)


def test_a_line_of_the_log_is_of_one_phase(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    phases = (dataclasses.replace(RECIPE.phases[0], steps=4), Phase("entropy", steps=1, crop=64, batch=4))
    recipe = dataclasses.replace(RECIPE, phases=phases)
    train(photographs, tmp_path, recipe, device="cpu", precision="float32", quiet=True)
    _, *lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [(line["step"], line["phase"]) for line in lines] == [(3, "autoencoder"), (4, "autoencoder"), (5, "entropy")]
    assert ["base_mse" in line for line in lines] == [True, True, False]


def save_run(run: Trainer, folder: Path, root: Path) -> None:
    folder.mkdir()
    save_state(folder, run.state())
    export_run(folder, root)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lr = 1", "no field lr"),
        ("preset = 'papier'\n[[phase]]\nsteps = 1", "unknown preset"),
        ("preset = 'paper-x'\n[[phase]]\nsteps = 1", "unknown preset"),
        ("lpips = 'resnet'\n[[phase]]\nsteps = 1", "lpips must be one of alex, squeeze, vgg"),
        ("lr_adam = 0\n[[phase]]\nsteps = 1", "above 0"),
        ("clip = inf\n[[phase]]\nsteps = 1", "above 0"),
        ("ema = 1.0\n[[phase]]\nsteps = 1", "ema must be"),
        ("ramp = -1.0\n[[phase]]\nsteps = 1", "ramp from 0 to 1"),
        ("[[phase]]\nsteps = 1\n[weights]\nlambda_scale = 0", "lambda_scale must be"),
        ("[[phase]]\nsteps = 1\n[weights]\nlattice = -1", "kappa and lattice"),
        ("[[phase]]\nlpips = -0.5", "weight of LPIPS"),
        ("", "no \\[\\[phase\\]\\]"),
        ("[[phase]]\nkind = 'magic'", "unknown kind"),
        ("[[phase]]\nkind = 'noise'", "does not train"),
        ("preset = 'compact-eps'\n[[phase]]\nkind = 'joint'", "does not train"),
        ("[[phase]]\ndecay = 2.0", "from 0 to 1"),
        ("[[phase]]\nbatch = 6", "multiple of 4"),
        ("[[phase]]\ncritic = 0.3", "without LPIPS"),
        ("[[phase]]\nlpips = 0.5\ncritic = nan", "share must be 0 or above"),
        ("[[phase]]\ncrop = 100", "one of 64"),
        ("[[phase]]\nsteps = 'many'", "expected int"),
        ("seed = 99999999999999999999\n[[phase]]\nsteps = 1", "seed must be"),
        ("[[phase]", "not a TOML recipe"),
    ],
)
def test_recipes_that_are_wrong_are_explained(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=complaint):
        load_recipe(path)


def test_the_recipes_that_come_with_cdcodec_are_sound() -> None:
    for name in ("compact-x", "compact-x-further", "compact-eps", "smoke"):
        recipe = load_recipe(name)
        assert parse_recipe(recipe.to_dict(), name) == recipe
        assert recipe.rate_at(0) < recipe.rate_at(recipe.warmup) <= recipe.phases[0].rate
        ends = np.cumsum([phase.steps for phase in recipe.phases])
        assert recipe.rate_at(recipe.steps - 1) <= 0.04
        for end in ends[:-1]:  # each phase warms up anew, to its own rate
            assert recipe.rate_at(end) < recipe.rate_at(end + recipe.warmup) <= recipe.phase_at(end)[1].rate
    with pytest.raises(TrainingError, match="one of compact-eps, compact-x, compact-x-further, smoke"):
        load_recipe("nothing")


def test_a_recipe_resized_has_its_share_of_steps_and_other_batches() -> None:
    recipe = load_recipe("compact-x")
    small = recipe.resized(0.01, 8)
    assert [phase.steps for phase in small.phases] == [phase.steps // 100 for phase in recipe.phases]
    assert {phase.batch for phase in small.phases} == {8}
    assert small.rate_at(0) == recipe.rate_at(0)  # a warm-up cut short would break what a phase begins with
    assert [phase.steps for phase in recipe.resized(1e-6).phases] == [1] * len(recipe.phases)
    assert recipe.resized() == recipe
    with pytest.raises(TrainingError, match=r"a batch of 6: .* multiple of 4"):
        recipe.resized(1.0, 6)


def test_what_cannot_be_trained_on_is_said(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pictures"):
        train(tmp_path, tmp_path / "run", RECIPE)
    big = dataclasses.replace(RECIPE, phases=(Phase("autoencoder", 1, 1024, 8),))
    with pytest.raises(TrainingError, match="at least 1024"):
        train(photographs, tmp_path / "run", big)
    with pytest.raises(TrainingError, match="name a recipe"):
        train(photographs, tmp_path / "run", None)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATE).write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match=r"damaged, or not the state of a run$"):
        train(photographs, tmp_path / "run", RECIPE)
    torch.save({"recipe": {}, "step": 1}, tmp_path / "run" / STATE)
    with pytest.raises(TrainingError, match="is not the state of a training run: it has no average"):
        train(photographs, tmp_path / "run", RECIPE)
