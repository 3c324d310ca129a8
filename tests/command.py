"""The program as the tests call it, in this process, and what they look at afterwards."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdcodec.cli import main

PROGRAM = [sys.executable, "-m", "cdcodec"]


@dataclass(frozen=True)
class Result:
    code: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode()

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]


def run(*arguments: object, stdin: bytes = b"", terminal: bool = False) -> Result:
    """Run the program in this process."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    if terminal:
        errors.isatty = lambda: True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments], prog_name="cdcodec")
    text = errors.buffer.getvalue().decode()
    assert "Traceback" not in text or "--debug" in arguments
    return Result(leaving.value.code, output.buffer.getvalue(), text)


def fails(*arguments: object, code: int = 1, **keywords) -> str:
    """Run, expect failure without output, and return the one line on stderr less its prefix."""
    result = run(*arguments, **keywords)
    assert result.code == code, result
    assert result.output == b""
    lines = result.errors.splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("cdcodec: error: ")
    return lines[0].removeprefix("cdcodec: error: ")


def works(*arguments: object, **keywords) -> Result:
    result = run(*arguments, **keywords)
    assert result.code == 0, result
    return result


def picture(name: str, size: tuple[int, int] = (40, 24), mode: str = "RGB", **options) -> Path:
    """Write a test picture; returns its path."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    planes = np.stack([rows * 5 + columns, columns * 4, 200 - rows, 255 - columns * 3], axis=-1).clip(0, 255)
    image = Image.fromarray(planes.astype(np.uint8)[..., : 4 if mode.endswith("A") else 3]).convert(mode)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    image.save(name, **options)
    return Path(name)


def tree(folder: str | Path = ".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir())


def coded(name: str = "x.cdc") -> bytes:
    works("encode", picture("source.png"), name, "-q")
    os.remove("source.png")
    return Path(name).read_bytes()
