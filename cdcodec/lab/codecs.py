"""The codecs of an evaluation, all of which make real files: ours, its peers through Pillow, external programs."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import io
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from cdcodec import __version__, codec, image, weights
from cdcodec.errors import CdcodecError

Pixels = NDArray[np.uint8]
Setting = Mapping[str, Any]
"""What beside the rung decides a result: recorded encoder options of a peer, decode options of ours. JSON values."""

EXTERNAL_LADDER = (22, 27, 32, 37, 42, 47)
TIMEOUT = 3600
OUR_HEADER = 28
"""Bytes of a .cdc file without chunks that are not payload (SPEC.md §2)."""


class Codec(Protocol):
    """name, version: as recorded. ladder: what a rung is, "quality" or "lambda". settings: one result for each.

    missing() tells why the codec cannot be used here, if so; overhead(data) which bytes are packaging, if known.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def ladder(self) -> str: ...
    @property
    def rungs(self) -> tuple[float, ...]: ...
    @property
    def settings(self) -> tuple[Setting, ...]: ...

    def missing(self) -> str | None: ...
    def encode(self, pixels: Pixels, rung: float, setting: Setting) -> bytes: ...
    def decode(self, data: bytes, setting: Setting) -> Pixels: ...
    def overhead(self, data: bytes) -> int | None: ...


@dataclass(frozen=True)
class Own:
    """cdcodec itself with one preset of the weights in `root`; encodes once per λ and ρ, decodes once per setting.

    effort: of encoding. lam, rho: which of imported models is meant, of which each is for one λ and ρ.
    """

    preset: str
    root: Path
    device: str
    precision: str
    rungs: tuple[float, ...]
    settings: tuple[Setting, ...]
    effort: int = 0
    lam: float | None = None
    rho: float | None = None
    ladder: str = "lambda"

    @property
    def name(self) -> str:
        return f"{self.preset} effort {self.effort}" if self.effort else self.preset

    @property
    def version(self) -> str:
        model = self.load().model
        precision = str(model.dtype).removeprefix("torch.")
        used = _weights_id(self.root, self.preset, judged=self.effort > 0)
        return f"cdcodec {__version__}, weights {used}, {model.device.type} {precision}"

    def missing(self) -> None:
        """Nothing: the weights are looked for when it is made."""

    def load(self) -> weights.Checkpoint:
        """Raises WeightsError."""
        which = (self.preset, self.lam, self.rho)
        return _checkpoint(self.root, which, self.device, self.precision)

    def encode(self, pixels: Pixels, rung: float, setting: Setting) -> bytes:
        return codec.encode(pixels, self.load(), rung, effort=self.effort, rho=setting["rho"])

    def decode(self, data: bytes, setting: Setting) -> Pixels:
        return codec.decode(data, self.load(), **setting)[0]

    def overhead(self, data: bytes) -> int:
        return OUR_HEADER


@dataclass(frozen=True)
class Plugin:
    """A format that Pillow writes, itself or by a plugin. `options` go to save(), besides quality."""

    name: str
    format: str
    rungs: tuple[float, ...]
    options: Setting
    feature: str | None = None
    module: str | None = None
    package: str | None = None
    threads: Setting = field(default_factory=dict)
    ladder: str = "quality"

    @property
    def settings(self) -> tuple[Setting, ...]:
        return (self.options,)

    @property
    def version(self) -> str:
        if self.package:
            return _plugin_version(self.package)
        return f"{self.feature} {features.version(self.feature or '')}, pillow {importlib.metadata.version('pillow')}"

    def missing(self) -> str | None:
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{self.package} is not installed: pip install 'cdcodec[eval]'"
        if self.feature and not features.check(self.feature):
            return f"this Pillow was built without {self.feature}"
        return None

    def encode(self, pixels: Pixels, rung: float, setting: Setting) -> bytes:
        self._register()
        buffer = io.BytesIO()
        options = copy.deepcopy(dict(self.options))  # pillow-heif writes into it
        Image.fromarray(pixels).save(buffer, self.format, quality=round(rung), **options, **self.threads)
        return buffer.getvalue()

    def decode(self, data: bytes, setting: Setting) -> Pixels:
        self._register()
        with Image.open(io.BytesIO(data), formats=[self.format]) as picture:
            return np.array(picture.convert("RGB"))

    def overhead(self, data: bytes) -> int:
        return container_bytes(data)

    def _register(self) -> None:
        if self.module:
            plugin = importlib.import_module(self.module)
            if self.module == "pillow_heif":
                plugin.register_heif_opener()


def _heic(name: str, tune: str) -> Plugin:
    options = {"chroma": 420, "enc_params": {"preset": "slow", "tune": tune}}
    rungs = (5, 10, 16, 22, 28, 34, 40, 46, 52, 60)
    return Plugin(name, "HEIF", rungs, options, module="pillow_heif", package="pillow-heif")


PEERS = {
    peer.name: peer
    for peer in (
        Plugin("jpeg", "JPEG", (3, 5, 8, 12, 18, 26, 36, 48, 60, 72, 82),
               {"optimize": True, "progressive": True, "subsampling": "4:2:0"}, "jpg"),
        Plugin("webp", "WEBP", (0, 3, 8, 15, 25, 38, 52, 64, 75, 84), {"method": 6}, "webp"),
        Plugin("avif", "AVIF", (5, 12, 20, 28, 36, 44, 52, 60, 68, 76), {"speed": 4, "subsampling": "4:2:0"}, "avif",
               threads={"max_threads": 1}),
        Plugin("jxl", "JXL", (0, 5, 10, 20, 30, 40, 50, 60, 70, 78), {"effort": 7}, module="pillow_jxl",
               package="pillow-jxl-plugin", threads={"num_threads": 1}),
        _heic("heic", "ssim"),
        _heic("heic-psnr", "psnr"),
    )
}  # fmt: skip
"""Ladders reach from below 0.1 bpp to about 1 bpp on photographs. heic is libheif's default tuning."""


@dataclass(frozen=True)
class External:
    """Any codec by command lines, run without a shell. {in}, {rec}: PNG files; {out}: the coded file; {q}: a rung."""

    name: str
    encoder: str
    decoder: str
    rungs: tuple[float, ...] = EXTERNAL_LADDER
    ladder: str = "quality"

    @classmethod
    def parse(cls, text: str) -> External:
        """From "name=enc {in} {out} {q} ; dec {out} {rec}" or "name@22,27,32=…". Raises ValueError."""
        name, _, commands = text.partition("=")
        encoder, _, decoder = commands.partition(" ; ")
        name, _, ladder = name.partition("@")
        wanted = ((encoder, ("{in}", "{out}", "{q}")), (decoder, ("{out}", "{rec}")))
        if not name.strip() or any(part not in command for command, parts in wanted for part in parts):
            raise ValueError(f"{text!r} is not of the form 'name=enc {{in}} {{out}} {{q}} ; dec {{out}} {{rec}}'")
        rungs = tuple(float(q) for q in ladder.split(",")) if ladder else EXTERNAL_LADDER
        return cls(name.strip(), encoder.strip(), decoder.strip(), rungs)

    @property
    def version(self) -> str:
        return f"{self.encoder} ; {self.decoder}"

    @property
    def settings(self) -> tuple[Setting, ...]:
        return ({},)

    def missing(self) -> str | None:
        for command in (self.encoder, self.decoder):
            program = shlex.split(command)[0]
            if shutil.which(program) is None:
                return f"there is no program {program}"
        return None

    def encode(self, pixels: Pixels, rung: float, setting: Setting) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            names = {"{in}": f"{folder}/in.png", "{out}": f"{folder}/coded", "{q}": f"{rung:g}"}
            Image.fromarray(pixels).save(names["{in}"], compress_level=1)
            self._run(self.encoder, names)
            return self._result(Path(names["{out}"])).read_bytes()

    def decode(self, data: bytes, setting: Setting) -> Pixels:
        with tempfile.TemporaryDirectory() as folder:
            names = {"{out}": f"{folder}/coded", "{rec}": f"{folder}/rec.png"}
            Path(names["{out}"]).write_bytes(data)
            self._run(self.decoder, names)
            return image.read(self._result(Path(names["{rec}"])), strip=True).pixels

    def overhead(self, data: bytes) -> None:
        return None

    def _run(self, command: str, names: dict[str, str]) -> None:
        words = shlex.split(command)
        for mark, value in names.items():
            words = [word.replace(mark, value) for word in words]
        done = subprocess.run(words, capture_output=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise CdcodecError(f"{words[0]} failed with exit code {done.returncode}: {last[0]}")

    def _result(self, path: Path) -> Path:
        if not path.is_file():
            raise CdcodecError(f"{self.name}: the command succeeded, but wrote no file")
        return path


def container_bytes(data: bytes) -> int:
    """Packaging bytes of a JPEG, WebP, AVIF, HEIC or JPEG XL file: boxes, chunk headers, application markers."""
    if data[:2] == b"\xff\xd8":
        return 4 + sum(size for marker, size in _jpeg_segments(data) if 0xE0 <= marker <= 0xEF or marker == 0xFE)
    if data[:4] == b"RIFF":
        return len(data) - sum(size for name, size in _riff_chunks(data) if name in (b"VP8 ", b"VP8L"))
    if data[4:8] in (b"ftyp", b"JXL "):
        return len(data) - sum(size for name, size in _boxes(data) if name in (b"mdat", b"jxlc", b"jxlp"))
    return 0


def _jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """(marker, bytes with marker) of the segments before the first scan."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], size))
        at += size
    return found


def _riff_chunks(data: bytes) -> list[tuple[bytes, int]]:
    """(name, bytes of contents) of the chunks of a RIFF file."""
    found, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((data[at : at + 4], size))
        at += 8 + size + size % 2
    return found


def _boxes(data: bytes) -> list[tuple[bytes, int]]:
    """(name, bytes of contents) of the top-level boxes of an ISO base media file."""
    found, at = [], 0
    while at + 8 <= len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or len(data) - at
        found.append((data[at + 4 : at + 8], max(size - header, 0)))
        at += max(size, 8)
    return found


@lru_cache(maxsize=4)
def _checkpoint(
    root: Path, which: tuple[str, float | None, float | None], device: str, precision: str
) -> weights.Checkpoint:
    preset, lam, rho = which
    return weights.load_model(root, preset=preset, lam=lam, rho=rho, device=device, precision=precision)


@lru_cache(maxsize=16)
def _weights_id(root: Path, preset: str, judged: bool) -> str:
    """Twelve hexadecimal digits that change whenever a file of the preset does; its judge counts where it is asked."""
    import hashlib

    files = [path for path in sorted((root / preset).glob("*.safetensors")) if judged or path.name != weights.JUDGE]
    hashes = [weights.file_hash(path) for path in files]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:12]


@lru_cache(maxsize=8)
def _plugin_version(package: str) -> str:
    text = f"{package} {importlib.metadata.version(package)}"
    if package == "pillow-heif":
        import pillow_heif

        info = pillow_heif.libheif_info()
        text += f", libheif {info['libheif']}, {info['encoders'].get('x265', 'no HEVC encoder')}"
    return text
