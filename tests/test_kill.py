"""Nothing half-written: processes killed at random moments, folders that are read-only, disks that are full."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch
from short_run import RECIPE, trainer

import cdcodec
from cdcodec.errors import TrainingError, WeightsError
from cdcodec.lab.log import RunLog
from cdcodec.lab.state import STATE, load_state, save_state
from cdcodec.lab.train import train
from cdcodec.weights import save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")
KILLS = int(os.environ.get("CDCODEC_KILLS", "25"))
"""Of each command, in the slow tests."""


@pytest.fixture(scope="module")
def processes():
    return kills.server()


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> kills.Desk:
    return kills.Desk(tmp_path_factory.mktemp("kill"))


@pytest.mark.parametrize("count", [1, pytest.param(KILLS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", ["encode", "decode", "train", "eval"])
def test_killed_at_random_moments(verb, count, processes, desk, tmp_path):
    tally = kills.kill(kills.victim(verb, desk, tmp_path / "out"), processes, count, count, tmp_path / "ready")
    assert tally.killed == count
    if count > 20:
        assert len(tally.stages) > 4, "the kills came at different stages"


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_no_file_may_grow(verb, processes, desk, tmp_path):
    """RLIMIT_FSIZE acts as a full disk: what is small enough is written, of the others nothing is left."""
    victim, out = kills.Coding(verb, desk, tmp_path / "out"), tmp_path / "out"
    sizes = sorted(len(data) for data in victim.right.values())
    process = kills.start(processes, victim.words, tmp_path / "ready", limit=sizes[5], heard=False)
    process.join(60)
    assert process.exitcode == 1
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert found == {name: data for name, data in victim.right.items() if len(data) <= sizes[5]}


def test_a_disk_that_fills_up_during_training_keeps_the_last_state(processes, desk, tmp_path):
    victim = kills.Training(desk, tmp_path / "run")
    process = kills.start(processes, victim.words, tmp_path / "ready")
    process.join(120)
    assert process.exitcode == 0
    before = (tmp_path / "run" / "state.pt").read_bytes()
    process = kills.start(processes, [*victim.words, "--minutes", "1"], tmp_path / "ready", limit=len(before) // 2)
    process.join(120)
    assert process.exitcode == 1
    errors = Path(f"{tmp_path / 'ready'}.errors").read_text()
    assert errors.splitlines()[-1] == (
        "cdcodec: error: the state of the run cannot be saved, the last one is kept: [Errno 27] File too large"
    )
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    assert kills.visible(tmp_path / "run").keys() == {"state.pt", "recipe.json", "log.jsonl"}
    assert not (tmp_path / "run" / "state.pt.part").exists()


def program(*words: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "cdcodec", *map(str, words)], stderr=subprocess.PIPE, text=True,
                          check=False, cwd=Path(cdcodec.__file__).parents[1], **options)  # fmt: skip


def test_standard_output_on_a_full_disk(desk):
    with open("/dev/full", "wb") as full:
        run = program(*desk.with_weights("encode", desk.root / "pictures" / "00.png", "-"), stdout=full)
    assert run.returncode == 1
    assert "No space left on device" in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_full_file_system(desk, tmp_path):
    """A real one of 64 KiB; needs the right to mount."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        words = desk.with_weights("decode", desk.root / "coded", "-o", small, "--format", "bmp", "--steps", 1)
        run = program(*words)
        assert run.returncode == 1
        assert "No space left on device" in run.stderr
        assert "Traceback" not in run.stderr
        found = {path.name: path.read_bytes() for path in small.iterdir()}
        assert found.items() < desk.decoded.items()
        assert found
    finally:
        subprocess.run(["umount", str(small)], check=True)


READ_ONLY = """
import os, sys
from cdcodec import files
from cdcodec.errors import OutputError
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
for force in (False, True):
    try:
        files.write("fixed/old.cdc" if force else "fixed/new.cdc", b"new", force=force)
    except OutputError as error:
        print(error)
"""


def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir()
    (folder / "old.cdc").write_bytes(b"old")
    tmp_path.chmod(0o755)
    folder.chmod(0o555)
    environment = {**os.environ, "PYTHONPATH": str(Path(cdcodec.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", READ_ONLY], stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path,
                         env=environment)  # fmt: skip
    folder.chmod(0o755)
    assert run.stdout.count("cannot be written: Permission denied") == 2
    assert [path.read_bytes() for path in folder.iterdir()] == [b"old"]


# --- a run of training, without processes


def test_a_state_that_cannot_be_saved(photographs, tmp_path, monkeypatch):
    state = trainer(photographs).state()
    save_state(tmp_path, state)

    def full(state, file):
        file.write(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"cannot be saved, the last one is kept: .*No space left on device"):
        save_state(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert load_state(tmp_path)["step"] == 0


def test_being_told_to_stop_waits_for_the_end_of_an_update(photographs, tmp_path, monkeypatch):
    whole = trainer(photographs)
    for _ in range(RECIPE.steps):
        whole.step()
    lerp = torch._foreach_lerp_

    def told(*arguments):
        monkeypatch.setattr(torch, "_foreach_lerp_", lerp)
        os.kill(os.getpid(), signal.SIGTERM)
        lerp(*arguments)

    monkeypatch.setattr(torch, "_foreach_lerp_", told)
    settings = {"device": "cpu", "precision": "float32", "quiet": True}
    with pytest.raises(SystemExit) as leaving:
        train(photographs, tmp_path, RECIPE, **settings)
    assert leaving.value.code == 143
    assert load_state(tmp_path)["step"] == 1
    train(photographs, tmp_path, None, **settings)
    for mine, theirs in zip(load_state(tmp_path)["average"], whole.average, strict=True):
        assert torch.equal(mine, theirs)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_update_that_fails_is_not_saved(photographs, tmp_path, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "_foreach_lerp_", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(photographs, tmp_path, RECIPE, device="cpu", precision="float32", quiet=True)
    assert not (tmp_path / STATE).exists()


def test_the_log_of_a_killed_run_is_mended(tmp_path):
    lines = [json.dumps({"note": "began"}), *(json.dumps({"step": n, "loss": 1.0}) for n in (50, 100, 150))]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 200, "lo']))
    RunLog(tmp_path, 400, 100, quiet=True).close()
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:3]


def test_weights_that_cannot_be_written(tmp_path, monkeypatch):
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(WeightsError, match="No space left on device"):
            save({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {})
    assert list(tmp_path.iterdir()) == []
    whole = save({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {})
    assert whole.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
