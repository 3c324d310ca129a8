"""Where outputs go, and that they are whole or not there."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from cdcodec import files
from cdcodec.errors import CdcodecError, ImageError, OutputError
from cdcodec.files import Job, PlanError

PICTURES = {".png", ".jpg"}


def plan_encode(*paths, folder=None):
    paths = [str(path) for path in paths]
    folder = None if folder is None else str(folder)
    return files.plan(paths, folder, suffix=".cdc", source_suffixes=PICTURES, target_suffixes={".cdc"})


def plan_decode(*paths, folder=None):
    return files.plan(paths, folder, suffix=".png", source_suffixes={".cdc"}, target_suffixes=PICTURES)


@pytest.fixture
def photos(tmp_path):
    """photos/{a.png, B.JPG, notes.txt, .hidden.png, sub/deep/a.png, .cache/c.png}"""
    root = tmp_path / "photos"
    for name in ("a.png", "B.JPG", "notes.txt", ".hidden.png", "sub/deep/a.png", ".cache/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("paths", "job"),
    [
        (["in.png"], ("in.png", "in.cdc")),
        (["some/where.v2/in"], ("some/where.v2/in", "some/where.v2/in.cdc")),
        (["photo.2024"], ("photo.2024", "photo.cdc")),
        (["in.png", "out.cdc"], ("in.png", "out.cdc")),
        (["in.png", "OUT.CDC"], ("in.png", "OUT.CDC")),
        (["in.png", "-"], ("in.png", "-")),
        (["-", "out.cdc"], ("-", "out.cdc")),
        (["-", "-"], ("-", "-")),
        (["-"], ("-", "-")),
        (["./-"], ("./-", "./-.cdc")),
    ],
)
def test_one_input(paths, job):
    assert plan_encode(*paths) == [Job(*job)]


@pytest.mark.parametrize(
    ("paths", "job"),
    [
        (["x.cdc"], ("x.cdc", "x.png")),
        (["x.cdc", "y.JPG"], ("x.cdc", "y.JPG")),
        (["-", "y.png"], ("-", "y.png")),
    ],
)
def test_one_input_to_decode(paths, job):
    assert plan_decode(*paths) == [Job(*job)]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.png", "b.png"], "several inputs need -o DIR; b.png is not a name for an output"),
        (["a.png", "b.png", "c.cdc"], "several inputs need -o DIR"),
        (["a.png", "out"], "several inputs need -o DIR; out is not a name for an output"),
    ],
)
def test_paths_that_do_not_say_what_goes_where(paths, message):
    with pytest.raises(PlanError) as caught:
        plan_encode(*paths)
    assert str(caught.value) == message


def test_decode_does_not_take_two_coded_files_for_in_and_out():
    with pytest.raises(PlanError, match=r"several inputs need -o DIR; b\.cdc is not"):
        plan_decode("a.cdc", "b.cdc")


def test_a_folder_needs_a_folder(photos):
    with pytest.raises(PlanError, match="is a folder: say with -o DIR"):
        plan_encode(photos)
    with pytest.raises(PlanError, match="is a folder: say with -o DIR"):
        plan_encode(photos, "out.cdc")


def test_folders_keep_their_tree(photos, tmp_path):
    jobs = plan_encode(photos, "elsewhere/z.png", folder=tmp_path / "out")
    targets = {os.path.relpath(job.source, tmp_path): os.path.relpath(job.target, tmp_path) for job in jobs[:-1]}
    assert targets == {
        "photos/B.JPG": "out/B.cdc",
        "photos/a.png": "out/a.cdc",
        "photos/sub/deep/a.png": "out/sub/deep/a.cdc",
    }
    assert jobs[-1] == Job("elsewhere/z.png", str(tmp_path / "out" / "z.cdc"))
    assert not (tmp_path / "out").exists()


def test_files_named_twice_are_done_once(photos, tmp_path):
    once = plan_encode(photos, folder=tmp_path / "out")
    assert plan_encode(photos, photos / "a.png", f"{photos}/./a.png", photos, folder=tmp_path / "out") == once


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match="holds nothing to work on"):
        plan_encode(tmp_path / "empty", folder=tmp_path / "out")


def test_folders_that_cannot_be_listed_are_not_passed_over(photos, tmp_path, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="deep"):
        plan_encode(photos, folder=tmp_path / "out")


def test_standard_input_has_no_name_for_a_folder(tmp_path):
    with pytest.raises(PlanError, match="standard input has no name"):
        plan_encode("-", folder=tmp_path)


def test_a_file_name_behind_o(tmp_path):
    with pytest.raises(PlanError, match=r"-o names a folder; to write one file, say: in\.png out\.cdc"):
        plan_encode("in.png", folder="out.cdc")
    (tmp_path / "odd.cdc").mkdir()
    assert plan_encode("in.png", folder=tmp_path / "odd.cdc")[0].target == str(tmp_path / "odd.cdc" / "in.cdc")


def test_colliding_names():
    with pytest.raises(OutputError, match=r"x/a\.jpg and x/a\.png would both be written to out/a\.cdc"):
        plan_encode("x/a.jpg", "x/a.png", folder="out")
    with pytest.raises(OutputError, match=r"x/a\.png and y/a\.png would both be written"):
        plan_encode("x/a.png", "y/a.png", folder="./out")


def test_outputs_never_hit_inputs():
    with pytest.raises(OutputError, match=r"x\.cdc would be overwritten by an output"):
        plan_encode("x.cdc")
    with pytest.raises(OutputError, match=r"x\.png would be overwritten by an output"):
        plan_decode("x.png", "./x.png")


def test_prepare_creates_the_tree_only_when_asked(tmp_path):
    jobs = [Job("a", str(tmp_path / "new/sub/a.cdc")), Job("-", "-")]
    with pytest.raises(OutputError, match=r"the folder .*new/sub does not exist; create it first"):
        files.prepare(jobs, create=False)
    assert leftovers(tmp_path) == []
    files.prepare(jobs, create=True)
    files.prepare(jobs, create=False)
    assert (tmp_path / "new/sub").is_dir()


def test_prepare_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"the folder .*file cannot be created"):
        files.prepare([Job("a", str(tmp_path / "file" / "a.cdc"))], create=True)


def test_prepare_in_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(OutputError, match="is not writable"):
        files.prepare([Job("a", str(tmp_path / "a.cdc"))], create=False)


def test_write_and_read_back(tmp_path):
    target = tmp_path / "a.cdc"
    files.write(str(target), b"first", force=False)
    assert files.read(str(target)) == b"first"
    assert leftovers(tmp_path) == ["a.cdc"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("links", [True, False])
def test_an_existing_file_is_replaced_only_by_force(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
    target = tmp_path / "a.cdc"
    files.write(str(target), b"first", force=False)
    with pytest.raises(OutputError, match=r"a\.cdc exists already; --force replaces it, --skip-existing leaves it"):
        files.write(str(target), b"second", force=False)
    assert target.read_bytes() == b"first"
    files.write(str(target), b"second", force=True)
    assert target.read_bytes() == b"second"
    assert leftovers(tmp_path) == ["a.cdc"]


def refuse_links(source, target):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse_links)
    files.write(str(tmp_path / "a.cdc"), b"whole", force=False)
    assert (tmp_path / "a.cdc").read_bytes() == b"whole"
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(str(tmp_path / "b.cdc"), b"whole", force=False)
    assert leftovers(tmp_path) == ["a.cdc"]


def interrupted(*args):
    raise KeyboardInterrupt


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("failure", "error"), [(interrupted, KeyboardInterrupt), (full_disk, OutputError)])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch, failure, error, force):
    target = tmp_path / "a.cdc"
    if force:
        target.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", failure)
    monkeypatch.setattr(os, "link", failure)
    with pytest.raises(error):
        files.write(str(target), b"data", force=force)
    assert leftovers(tmp_path) == (["a.cdc"] if force else [])
    assert not force or target.read_bytes() == b"before"


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    class FullFile(io.FileIO):
        def write(self, data):
            super().write(data[: len(data) // 2])
            full_disk()

    monkeypatch.setattr("builtins.open", lambda path, mode: FullFile(path, mode))
    with pytest.raises(OutputError, match=r"a\.cdc cannot be written: No space left on device"):
        files.write(str(tmp_path / "a.cdc"), b"data", force=False)
    monkeypatch.undo()
    assert leftovers(tmp_path) == []


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"a\.cdc cannot be written: No such file or directory"):
        files.write(str(tmp_path / "no" / "a.cdc"), b"data", force=False)
    (tmp_path / "folder.cdc").mkdir()
    with pytest.raises(OutputError, match=r"folder\.cdc cannot be written: Is a directory"):
        files.write(str(tmp_path / "folder.cdc"), b"data", force=True)
    assert leftovers(tmp_path) == ["folder.cdc"]


def test_force_writes_through_a_symbolic_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.cdc").write_bytes(b"old")
    (tmp_path / "a.cdc").symlink_to(tmp_path / "real" / "a.cdc")
    with pytest.raises(OutputError, match="exists already"):
        files.write(str(tmp_path / "a.cdc"), b"new", force=False)
    files.write(str(tmp_path / "a.cdc"), b"new", force=True)
    assert (tmp_path / "a.cdc").is_symlink()
    assert (tmp_path / "real" / "a.cdc").read_bytes() == b"new"


def test_exists_sees_dangling_links_but_not_standard_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_bytes(b"")
    (tmp_path / "dangling.cdc").symlink_to("nowhere")
    assert not files.exists(Job("a", "-"))
    assert files.exists(Job("a", "./-"))
    assert files.exists(Job("a", "dangling.cdc"))
    assert not files.exists(Job("a", "b.cdc"))


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_terminals_are_neither_read_nor_written(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"typed")))
    monkeypatch.setattr(sys, "stdout", Terminal(screen))
    with pytest.raises(CdcodecError, match="standard input is a terminal"):
        files.read("-")
    with pytest.raises(OutputError, match="standard output is a terminal"):
        files.write("-", b"bytes", force=False)
    with pytest.raises(OutputError, match="standard output is a terminal"):
        files.prepare([Job("a.cdc", "-")], create=True)  # before any work
    assert screen.getvalue() == b""


def test_closed_streams_are_neither_read_nor_written(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(CdcodecError, match="it is closed; name a file"):
        files.read("-")
    with pytest.raises(OutputError, match="standard output is closed"):
        files.write("-", b"bytes", force=False)


class Unbuffered(io.RawIOBase):
    """Standard output under `python -u`: takes only some of the bytes at a time."""

    def __init__(self):
        self.taken = b""

    def writable(self):
        return True

    def write(self, data):
        self.taken += bytes(data[:100])
        return min(100, len(data))


def test_standard_output_that_takes_a_little_at_a_time(monkeypatch):
    stream = Unbuffered()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, write_through=True))
    files.write("-", bytes(range(256)), force=False)
    assert stream.taken == bytes(range(256))


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(CdcodecError, match=r"^no such file$"):
        files.read(str(tmp_path / "missing.cdc"))
    with pytest.raises(CdcodecError, match=r"^this is a folder, not a file$"):
        files.read(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ImageError("two\nlines"), "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.png"), "x.png: No such file or directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (KeyError("k"), "internal error, KeyError: 'k' (--debug before the command shows where)"),
    ],
)
def test_errors_in_one_line(error, line):
    assert files.one_line(error) == line


@pytest.mark.parametrize("other", ["x/A.jpg", "y/É.png"])
def test_names_that_only_macos_takes_for_one(tmp_path, monkeypatch, other):
    names = ["x/a.png", "x/e\u0301.png", other]
    assert len(files.plan(names, "out", suffix=".cdc", source_suffixes=(), target_suffixes=())) == 3
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OutputError, match="would both be written to"):
        files.plan(names, "out", suffix=".cdc", source_suffixes=(), target_suffixes=())
