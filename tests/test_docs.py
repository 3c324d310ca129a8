"""What the documents say is true: README's blocks run, every command is in it, help is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from cdcodec import __version__
from cdcodec.cli import main
from cdcodec.config import LADDER
from cdcodec.weights import find_weights, list_checkpoints

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photographs that README's examples speak of."""
    from skimage import data

    folder = tmp_path_factory.mktemp("desk")
    (folder / "photos").mkdir()
    Image.fromarray(data.coffee()[100:260, 100:340]).save(folder / "photo.jpg", quality=95)
    Image.fromarray(data.astronaut()[:96, 160:288]).save(folder / "photos" / "astronaut.png")
    Image.fromarray(data.chelsea()[:64, :96]).save(folder / "photos" / "cat.jpg", quality=95)
    return folder


def test_readme_shell_examples_run(desk: Path) -> None:
    assert shutil.which("cdcodec", path=str(Path(sys.executable).parent)), "the package is installed with its command"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    examples = blocks("bash")
    assert len(examples) >= 2
    for example in examples:
        command = ["bash", "-euo", "pipefail", "-c", example]
        subprocess.run(command, cwd=desk, env={**os.environ, "PATH": path}, check=True)
    for name in ("photo.cdc", "decoded.png", "coded/cat.cdc", "decoded/astronaut.png"):
        assert (desk / name).stat().st_size > 0, name


def test_readme_python_examples_run(desk: Path) -> None:
    examples = blocks("python")
    assert examples
    for example in examples:
        subprocess.run([sys.executable, "-c", example], cwd=desk, check=True)


def commands(group: click.Group, prefix: str = "cdcodec") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        full = f"{prefix} {name}"
        found |= commands(command, full) if isinstance(command, click.Group) else {full: command}
    return found


def test_every_command_is_in_the_readme_and_every_option_explained() -> None:
    known = commands(main)
    assert {"cdcodec encode", "cdcodec decode", "cdcodec info", "cdcodec train", "cdcodec export"} <= set(known)
    for name, command in known.items():
        assert name in README, name
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"


def test_files_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_changelog_opens_with_this_version_and_says_what_becomes_of_files() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## ([^\n]+)\n+([^\n]+)", changelog, re.MULTILINE)
    assert first is not None
    assert __version__ in first[1]
    assert first[2].startswith("Bitstream:")


def test_the_shipped_weights_are_the_ladder_with_a_card() -> None:
    root = find_weights(ROOT / "weights")
    shipped = [entry for entry in list_checkpoints(root) if entry.preset == "compact-x"]
    assert tuple(entry.lam for entry in shipped) == LADDER
    assert all(entry.bpp for entry in shipped)
    rates = [entry.bpp or 0 for entry in shipped]
    assert rates == sorted(rates, reverse=True)
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 64_000_000
    card = (root / "README.md").read_text(encoding="utf-8")
    for word in ("steps", "licence", "CC BY-SA", "PSNR", "LPIPS", "bad at"):
        assert word in card, word
