"""Kill commands at random moments and look at what they leave: every file must be whole or absent.

    python tests/kills.py --count 300 --seed 0          encode, decode, train and eval in turn
    python tests/kills.py --count 50 train              one of them

A killed train or eval is resumed by the next process; when it comes to its end, its numbers must be those of a run that
nobody killed. The first thing wrong ends it with an AssertionError; the folder is kept then. A server process
(multiprocessing's forkserver) has PyTorch loaded, so that a kill costs little more than the run it ends.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import write_tiny_weights
from PIL import Image

from cdcodec import codec
from cdcodec.lab import results
from cdcodec.lab.state import load_state
from cdcodec.weights import load_model

PRELOADED = ["torch", "cdcodec.batch", "cdcodec.target", "cdcodec.lab.train", "cdcodec.lab.report", "cdcodec.lab.plan",
             "matplotlib.pyplot"]  # fmt: skip
TEMPORARY = (".cdcodec-", "state.pt.part")
"""How the files begin that a killed process may leave behind."""
RECIPE = """
preset = "tiny-x"
warmup = 2
[[phase]]
kind = "autoencoder"
steps = 12
crop = 64
batch = 8
[[phase]]
kind = "joint"
steps = 8
crop = 64
batch = 8
"""
SAVE_EVERY = 2


def program(arguments: list[str], ready: str, limit: int | None = None, heard: bool = True) -> None:
    """Body of a process to be killed: runs the command, having written the file `ready` when all is imported.

    limit: largest size in bytes that a file may grow to.
    """
    import resource
    torch.set_num_threads(1)
    from cdcodec import batch, image, target  # noqa: F401
    from cdcodec.cli import main
    from cdcodec.lab import train

    train.LOG_EVERY, train.SAVE_SECONDS = SAVE_EVERY, 0.0
    image.readable_extensions()
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    errors = Path(f"{ready}.errors") if heard else Path(os.devnull)
    sys.stdout = sys.stderr = errors.open("w", buffering=1)
    Path(ready).touch()
    main(arguments)


def server() -> Any:
    """A multiprocessing context whose processes begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start(context: Any, words: list[str], ready: Path, limit: int | None = None, heard: bool = True) -> Any:
    """A process that runs the command, and has come to its beginning; unless `heard`, its errors go nowhere."""
    ready.unlink(missing_ok=True)
    process = context.Process(target=program, args=(words, str(ready), limit, heard))
    process.start()
    deadline = time.monotonic() + 60
    while not ready.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    return process


class Desk:
    """A folder with pictures/, coded/ and weights/, and what encoding the first must give, what decoding the second."""

    def __init__(self, root: Path) -> None:
        self.root, self.coded, self.decoded = root, {}, {}
        for name in ("pictures", "coded", "weights"):
            (root / name).mkdir(parents=True)
        model = load_model(write_tiny_weights(root / "weights"), device="cpu", precision="float32")
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 256, (64 + 8 * i, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / f"{i:02d}.png")
            data = codec.encode(pixels, model, 0.0128)
            (root / "coded" / f"{i:02d}.cdc").write_bytes(data)
            bmp = io.BytesIO()
            Image.fromarray(codec.decode(data, model, steps=1)[0]).save(bmp, "BMP")
            self.coded[f"{i:02d}.cdc"], self.decoded[f"{i:02d}.bmp"] = data, bmp.getvalue()

    def with_weights(self, *words: object) -> list[str]:
        return [*map(str, words), "--weights", str(self.root / "weights"), "--device=cpu", "--precision=float32"]


def visible(folder: Path) -> dict[str, Path]:
    """The files below a folder as a user sees them, by their names."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
    return {str(path.relative_to(folder)): path for path in paths}


class Coding:
    """`encode` or `decode` of a folder; in every other run the outputs stand there already."""

    def __init__(self, verb: str, desk: Desk, out: Path) -> None:
        self.out, self.before = out, b""
        if verb == "encode":
            self.right, words = desk.coded, ["encode", desk.root / "pictures"]
        else:
            self.right, words = desk.decoded, ["decode", desk.root / "coded", "--steps=1", "--format=bmp"]
        self.words = desk.with_weights(*words, "-o", out, "--force", "-q")

    def prepare(self, number: int) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.before = b"old " * 50 if number % 2 else b""
        if self.before:
            for name in self.right:
                (self.out / name).write_bytes(self.before)

    def look(self, ended: bool) -> int:
        """How many outputs are made; AssertionError if one is neither whole nor as it was."""
        found = {name: path.read_bytes() for name, path in visible(self.out).items()}
        for name, data in found.items():
            assert data in (self.right[name], self.before or None), f"{name} is neither whole nor as it was"
        assert len(found) == len(self.right) or not (self.before or ended), "an output is gone"
        return sum(found.get(name) == data for name, data in self.right.items())


class Training:
    """`train`, a state saved every other step; what was killed is resumed until its last step."""

    def __init__(self, desk: Desk, out: Path) -> None:
        self.out, self.step, self.losses, self.whole = out, 0, [], {}
        (desk.root / "recipe.toml").write_text(RECIPE)
        self.anew = ["train", "--images", str(desk.root / "pictures"), "--out", str(out), "-q", "--device=cpu",
                     "--precision=float32"]  # fmt: skip
        self.recipe = ["--recipe", str(desk.root / "recipe.toml")]

    @property
    def words(self) -> list[str]:
        return [*self.anew, *(["--resume"] if (self.out / "state.pt").exists() else self.recipe)]

    def prepare(self, number: int) -> None:
        """Nothing: the run goes on where it was killed."""

    def look(self, ended: bool) -> int:
        """The step that a resumed run begins at; AssertionError if it is not the last one that was saved, or more."""
        found = visible(self.out)
        assert found.keys() <= {"state.pt", "recipe.json", "log.jsonl"}
        assert not self.step or "state.pt" in found, "the state is gone"
        state = load_state(self.out) if "state.pt" in found else {"step": 0}
        assert state["step"] >= self.step, "the state went back"
        self.step = state["step"]
        if "recipe.json" in found:
            assert json.loads(found["recipe.json"].read_bytes())["preset"] == "tiny-x"
        log = found["log.jsonl"].read_bytes().split(b"\n") if "log.jsonl" in found else [b""]
        lines = [json.loads(line) for line in log[:-1]]
        if not ended:
            return self.step
        losses = [(line["step"], line["loss"]) for line in lines if "step" in line]
        assert [step for step, _ in losses] == list(range(SAVE_EVERY, 21, SAVE_EVERY)), "steps are gone or told twice"
        if self.whole:
            assert losses == self.losses, "a resumed run has other losses"
            for name in ("parameters", "average"):
                for mine, theirs in zip(state[name], self.whole[name], strict=True):
                    assert torch.equal(mine, theirs), "a resumed run came to other weights"
        self.whole, self.losses, self.step = state, losses, 0
        shutil.rmtree(self.out)
        return 20


class Evaluating:
    """`eval` against JPEG; what was killed is resumed until the report is written."""

    def __init__(self, desk: Desk, out: Path) -> None:
        self.out, self.lines, self.whole = out, 0, {}
        self.words = desk.with_weights("eval", desk.root / "pictures", "-o", out, "--resume", "--lambda=0.0128",
                                       "--peers=jpeg", "--metrics=psnr", "--pictures=1", "-q")  # fmt: skip

    def prepare(self, number: int) -> None:
        """Nothing: the evaluation goes on where it was killed."""

    def look(self, ended: bool) -> int:
        """How many results there are; AssertionError if some are gone, or another file is neither whole nor absent."""
        found = visible(self.out)
        for name, path in found.items():
            data = path.read_bytes()
            match path.suffix:
                case ".png":
                    Image.open(io.BytesIO(data)).load()
                case ".json":
                    json.loads(data)
                case ".html":
                    assert data.rstrip().endswith(b"</html>"), f"{name} is cut"
                case ".svg":
                    assert data.rstrip().endswith(b"</svg>"), f"{name} is cut"
                case ".csv":
                    assert data.endswith(b"\r\n"), f"{name} is cut"
        made = results.read(found["results.jsonl"]) if "results.jsonl" in found else []
        assert len(made) >= self.lines, "results are gone"
        self.lines = len(made)
        if ended:
            assert {"index.html", "summary.csv", "bd.csv", "equal-bpp.csv", "run.json"} <= found.keys()
            numbers = {result.key: (result.bytes, dict(result.measures)) for result in made}
            assert len(numbers) == len(made), "something was measured twice"
            assert numbers == (self.whole or numbers), "a resumed evaluation came to other numbers"
            self.whole, self.lines = numbers, 0
            shutil.rmtree(self.out)
        return len(made)


@dataclass
class Tally:
    """Of one command: processes killed, processes that came to their end before, and where the kills found them."""

    killed: int = 0
    ended: int = 0
    stages: Counter[int] = field(default_factory=Counter)


def victim(name: str, desk: Desk, out: Path) -> Coding | Training | Evaluating:
    match name:
        case "train":
            return Training(desk, out)
        case "eval":
            return Evaluating(desk, out)
    return Coding(name, desk, out)


def kill(target: Coding | Training | Evaluating, context: Any, count: int, seed: int, ready: Path) -> Tally:
    """Run once to the end, then kill `count` times at moments uniform over that time. Raises AssertionError."""
    tally, random_ = Tally(), random.Random(seed)
    target.prepare(0)
    process = start(context, target.words, ready)
    started = time.monotonic()
    process.join(300)
    seconds = time.monotonic() - started
    assert process.exitcode == 0, Path(f"{ready}.errors").read_text()
    target.look(ended=True)
    while tally.killed < count:
        target.prepare(tally.killed)
        process = start(context, target.words, ready)
        process.join(random_.uniform(0, seconds))
        process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL), Path(f"{ready}.errors").read_text()
        ended = process.exitcode == 0
        stage = target.look(ended)
        tally.ended += ended
        if not ended:
            tally.killed += 1
            tally.stages[stage] += 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=["encode", "decode", "train", "eval"])
    parser.add_argument("--count", type=int, default=20, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    context, root = server(), Path(tempfile.mkdtemp(prefix="cdcodec-kills-"))
    desk = Desk(root)
    for i, name in enumerate(options.commands):
        count = options.count // len(options.commands) + (i < options.count % len(options.commands))
        tally = kill(victim(name, desk, root / f"out-{name}"), context, count, options.seed + i, root / "ready")
        stages = len(tally.stages)
        print(f"{name}: {tally.killed} killed, at {stages} stages; {tally.ended} came to their end", flush=True)
    print(f"{options.count} kills: every file whole or absent, every resumed run the same as a whole one")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
