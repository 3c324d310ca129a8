"""Nothing half-written: processes killed at random moments, folders that are read-only, disks that are full.

A server process (multiprocessing's forkserver) has PyTorch loaded, so that a kill costs tenths of a second.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdcodec
from cdcodec import codec

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")
KILLS = int(os.environ.get("CDCODEC_KILLS", "100"))


def command(arguments: list[str], ready: str, limit: int | None = None) -> None:
    """Body of a process to be killed: runs the program, having written the file `ready` when all is imported."""
    import resource

    import torch

    torch.set_num_threads(1)
    from cdcodec import batch, image, target  # noqa: F401
    from cdcodec.cli import main

    image.readable_extensions()
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    Path(ready).touch()
    sys.stderr = io.StringIO()
    main(arguments)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "cdcodec.codec", "cdcodec.batch", "cdcodec.target"])
    return context


@pytest.fixture(scope="module")
def photos(tmp_path_factory, tiny, tiny_weights) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """A folder with pictures/, coded/ and weights/; what encoding the first must give, what decoding the second."""
    root = tmp_path_factory.mktemp("kill")
    (root / "pictures").mkdir()
    (root / "coded").mkdir()
    (root / "weights").symlink_to(tiny_weights)
    coded, decoded = {}, {}
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + 8 * i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{i:02d}.png")
        coded[f"{i:02d}.cdc"] = codec.encode(pixels, tiny, 0.0128)
        (root / "coded" / f"{i:02d}.cdc").write_bytes(coded[f"{i:02d}.cdc"])
        decoded[f"{i:02d}.bmp"] = bmp(codec.decode(coded[f"{i:02d}.cdc"], tiny, steps=1)[0])
    return root, coded, decoded


def bmp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of a folder as a user sees them; a killed process may leave a hidden temporary one."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".cdcodec-")}


def arguments(verb: str, root: Path, out: Path) -> list[str]:
    common = ["-o", str(out), "--weights", str(root / "weights"), "--force", "--device=cpu", "--precision=float32"]
    if verb == "encode":
        return ["encode", str(root / "pictures"), *common]
    return ["decode", str(root / "coded"), *common, "--steps", "1", "--format", "bmp"]


def start(processes, ready: Path, words: list[str], limit: int | None = None):
    ready.unlink(missing_ok=True)
    process = processes.Process(target=command, args=(words, str(ready), limit))
    process.start()
    deadline = time.monotonic() + 60
    while not ready.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    return process


def wait_for(count: int, process, out: Path, right: dict[str, bytes]) -> None:
    """Until about so many outputs are there, or the process has ended."""
    while process.is_alive():
        try:
            done = sum(path.stat().st_size == len(right.get(path.name, b"")) for path in out.iterdir())
        except FileNotFoundError:  # a temporary file that was renamed meanwhile
            continue
        if done >= count:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("verb", ["encode", "decode"])
@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_killed_at_random_moments(verb, kills, processes, photos, tmp_path):
    root, *expected = photos
    right = expected[verb == "decode"]
    out, random_ = tmp_path / "out", random.Random(kills)
    out.mkdir()
    words = arguments(verb, root, out)
    whole = start(processes, tmp_path / "ready", words)
    whole.join(60)
    assert whole.exitcode == 0
    assert outputs(out) == right
    counts = []
    for number in range(kills):
        before = {}
        if number % 2:  # files stand there already: each must be the old one or the new one
            before = {name: b"old " * 50 for name in right}
        for path in out.iterdir():
            path.unlink()
        for name, data in before.items():
            (out / name).write_bytes(data)
        process = start(processes, tmp_path / "ready", words)
        wait_for(random_.randrange(len(right)), process, out, right)
        time.sleep(random_.uniform(0, 0.03))
        process.kill()
        process.join(60)
        found = outputs(out)
        for name, data in found.items():
            assert data in (right[name], before.get(name)), f"{name} is neither whole nor as it was"
        assert set(before) <= set(found)
        counts.append(sum(found.get(name) == right[name] for name in right))
    if kills > 20:
        assert len(set(counts)) > 6, "the kills came at different stages"


def test_no_file_may_grow(processes, photos, tmp_path):
    """RLIMIT_FSIZE acts as a full disk: what is small enough is written, of the others nothing is left."""
    root, coded, decoded = photos
    for verb, right in (("encode", coded), ("decode", decoded)):
        sizes = sorted(len(data) for data in right.values())
        out = tmp_path / verb
        process = start(processes, tmp_path / "ready", arguments(verb, root, out), limit=sizes[5])
        process.join(60)
        assert process.exitcode == 1
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        assert found == {name: data for name, data in right.items() if len(data) <= sizes[5]}


def program(*words: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "cdcodec", *map(str, words)], stderr=subprocess.PIPE, text=True,
                          check=False, cwd=Path(cdcodec.__file__).parents[1], **options)  # fmt: skip


def test_standard_output_on_a_full_disk(photos):
    with open("/dev/full", "wb") as full:
        run = program("encode", photos[0] / "pictures" / "00.png", "-", "--weights", photos[0] / "weights", stdout=full)
    assert run.returncode == 1
    assert "No space left on device" in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_full_file_system(photos, tmp_path):
    """A real one of 64 KiB; needs the right to mount."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        run = program("decode", photos[0] / "coded", "-o", small, "--format", "bmp", "--steps", 1, "--device", "cpu",
                      "--precision", "float32", "--weights", photos[0] / "weights")  # fmt: skip
        assert run.returncode == 1
        assert "No space left on device" in run.stderr
        assert "Traceback" not in run.stderr
        found = {path.name: path.read_bytes() for path in small.iterdir()}
        assert found.items() < photos[2].items()
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
    assert outputs(folder) == {"old.cdc": b"old"}
