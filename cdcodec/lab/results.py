"""results.jsonl: one line per image × codec × setting, appended as results come, and what a line means."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcodec.errors import CdcodecError

Key = tuple[str, str, str, str, str, float]


@dataclass(frozen=True)
class Result:
    """One picture through one codec at one setting, from real bytes.

    image: path below the evaluated folder. digest: of its pixels, hexadecimal. width, height: pixels.
    codec, version, setting, rung: what made it; `ladder` says what the rung is, "lambda" (ours) or "quality".
    bytes: of the whole file, `overhead` of them packaging (None: not known); bpp = 8·bytes/(width·height).
    encode_seconds, decode_seconds: wall time, with `jobs` processes side by side.
    peak_mb: by how much resident memory rose while coding, model and program being loaded, in 10^6 bytes; gpu_mb: peak
    of the GPU; None: not known.
    measures: by name; None where a measure is not defined.
    """

    image: str
    digest: str
    width: int
    height: int
    codec: str
    version: str
    setting: Mapping[str, Any]
    ladder: str
    rung: float
    bytes: int
    overhead: int | None
    bpp: float
    encode_seconds: float
    decode_seconds: float
    peak_mb: float | None
    gpu_mb: float | None
    jobs: int
    measures: Mapping[str, float | None]

    @property
    def own(self) -> bool:
        return self.ladder == "lambda"

    @property
    def key(self) -> Key:
        return key((self.image, self.digest), (self.codec, self.version), self.setting, self.rung)

    @property
    def curve(self) -> str:
        return label(self.codec, self.setting)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def key(picture: tuple[str, str], codec: tuple[str, str], setting: Mapping[str, Any], rung: float) -> Key:
    """What makes two results the same measurement. picture: name and digest. codec: name and version."""
    return *picture, *codec, json.dumps(setting, sort_keys=True), rung


def label(codec: str, setting: Mapping[str, Any]) -> str:
    """The name of a curve: a codec, ours with its decode settings ("compact-x, 17 steps, γ 0, ρ 0.9")."""
    if "steps" not in setting:
        return codec
    steps = setting["steps"]
    return f"{codec}, {steps} step{'' if steps == 1 else 's'}, γ {setting['gamma']:g}, ρ {setting['rho']:g}"


def read(path: Path) -> list[Result]:
    """All results of a file; a last line that was torn by an interruption is left out.

    Raises CdcodecError if the file cannot be read or another line is not a result.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CdcodecError(f"{path} cannot be read: {error.strerror}") from None
    results = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            raise CdcodecError(f"line {number} of {path} is not a result of this version of cdcodec") from None
    return results


def mend(path: Path) -> None:
    """Cut a torn last line off, so that lines can be appended."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def append(path: Path, results: Iterable[Result]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(result.to_json() + "\n" for result in results)
