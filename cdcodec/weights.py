"""Checkpoints on disk: safetensors per λ beside a shared base, hashes verified; listed without importing torch.

    weights/compact-x/base.safetensors           networks, entropy models, integer twin and tables
    weights/compact-x/lambda-0.0128.safetensors  what belongs to that λ, and the hash of its base
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdcodec.config import ModelConfig
from cdcodec.errors import WeightsError

if TYPE_CHECKING:
    import torch

    from cdcodec.bits.coder import Tables
    from cdcodec.nets.model import Model

FORMAT = "cdcodec-1"
BASE = "base.safetensors"
LADDER_TENSORS = ("condition", "log_gain", "log_inverse_gain", "log_variance")
HEADER_LIMIT = 2**24


@dataclass(frozen=True)
class CheckpointInfo:
    """One λ of one preset as it lies on disk. bpp: mean on the validation photographs, None if never measured."""

    preset: str
    lam: float
    path: Path
    bytes: int
    bitstream_id: str
    bpp: float | None
    licence: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tables: what `codec.encode` and `codec.decode` take.

    id: first four bytes of the hash of the integer tensors that define the stream. ladder: its λ, ascending.
    """

    model: Model
    tables: Tables
    id: int

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def ladder(self) -> tuple[float, ...]:
        return self.model.config.ladder

    def check_lambda(self, lam: float) -> float:
        """λ as the file will hold it (the shortest decimal of its float32). WeightsError outside of the ladder."""
        if not self.ladder[0] <= lam <= self.ladder[-1]:
            rungs = ", ".join(f"{rung:g}" for rung in self.ladder)
            raise WeightsError(f"λ = {lam:g} lies outside the ladder of {self.config.preset}: {rungs}, or between two")
        return float(str(np.float32(lam)))

    def check_file(self, checkpoint: int) -> None:
        """WeightsError if a file was made for other weights."""
        if checkpoint != self.id:
            raise WeightsError(
                f"this file was made with the weights {checkpoint:08x}, but those of {self.config.preset} here are "
                f"{self.id:08x}; name the right ones with --weights DIR"
            )


def find_weights(explicit: str | Path | None = None) -> Path:
    """The folder of all checkpoints: as told, else $CDCODEC_WEIGHTS, else of the checkout, else of the installation."""
    told = explicit or os.environ.get("CDCODEC_WEIGHTS")
    here = Path(__file__).resolve().parent
    for folder in [Path(told)] if told else [here.parent / "weights", here / "_weights"]:
        if folder.is_dir() and any(folder.glob("**/*.safetensors")):
            return folder
    where = f"in {told}" if told else "beside the package"
    raise WeightsError(f"no weights {where}; name the folder with --weights DIR or CDCODEC_WEIGHTS")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors. Raises WeightsError."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER_LIMIT:
                raise ValueError
            metadata = json.loads(file.read(length))["__metadata__"]
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        raise WeightsError(f"{path} is not a cdcodec checkpoint in safetensors format") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a cdcodec checkpoint of format {FORMAT}")
    return metadata


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every λ of every preset in a weights folder, by preset and λ. Raises WeightsError."""
    found = []
    for path in sorted(root.glob("*/lambda-*.safetensors")):
        m = read_metadata(path)
        bpp = float(m["bpp"]) if m.get("bpp") else None
        found.append(
            CheckpointInfo(
                m.get("preset", "?"), float(m["lambda"]), path, path.stat().st_size, m.get("bitstream", "?"), bpp,
                m.get("licence", "?"), m,
            )
        )
    return sorted(found, key=lambda info: (info.preset, info.lam))


def file_hash(path: Path) -> str:
    """SHA-256 of a whole file, hexadecimal. Raises WeightsError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None


def tensor_hash(tensors: dict[str, torch.Tensor], names: Iterable[str]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of the named tensors in sorted order, hexadecimal."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(names):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{t.dtype}:{tuple(t.shape)};".encode())
        digest.update(t.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def bitstream_names(tensors: Iterable[str]) -> list[str]:
    """Those tensors of a checkpoint that decide what a file's bits mean."""
    return [name for name in tensors if name.startswith(("integer.", "tables."))]


def verify(root: Path) -> list[tuple[Path, str]]:
    """(file, "ok" or what is wrong) for every checkpoint file of a weights folder."""
    results = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if any(folder.glob("*.safetensors")):
            for path in sorted(folder.glob("*.safetensors")):
                try:
                    if path.name == BASE:
                        _read_base(folder, None)
                    else:
                        _read_rung(path, file_hash(folder / BASE))
                    results.append((path, "ok"))
                except WeightsError as error:
                    results.append((path, str(error)))
    return results


def load_model(
    root: str | Path | None = None,
    *,
    preset: str = "compact-x",
    checkpoint: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Checkpoint:
    """The whole ladder of a preset, ready to encode and decode; hashes are verified.

    root: weights folder (None: `find_weights`). checkpoint: the id a file names, to be told early that it is another.
    device: auto, cpu or cuda. precision: auto, float32 or bfloat16, of the networks; the bits never depend on it.
    Raises WeightsError.
    """
    floats, integers, config = load_tensors(root, preset=preset)
    from cdcodec.bits.coder import Tables
    from cdcodec.bits.tables import TableSet
    from cdcodec.nets.integer import IntegerHyperSynthesis
    from cdcodec.nets.model import Model
    from cdcodec.nets.networks import Networks

    try:
        integer = IntegerHyperSynthesis.from_tensors(integers, config)
        sets = [
            TableSet(*(integers[f"tables.{which}.{part}"].numpy() for part in ("counts", "first", "length")))
            for which in ("z", "y")
        ]
        tables = Tables(z=sets[0], y=sets[1])
        if len(tables.z) != config.hyper:
            raise ValueError("the tables of z do not fit the architecture")
        networks = Networks(config)
        networks.load_state_dict({**{n: v.float() for n, v in floats.items() if not n.startswith("rate.")}})
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the checkpoint of {preset} is damaged: {str(error).splitlines()[0]}") from None
    place = pick_device(device)
    model = Model(networks, integer, place, pick_dtype(precision, place))
    number = int.from_bytes(bytes.fromhex(tensor_hash(integers, integers))[:4], "little")
    loaded = Checkpoint(model, tables, number)
    if checkpoint is not None:
        loaded.check_file(checkpoint)
    return loaded


def load_tensors(
    root: str | Path | None = None, *, preset: str = "compact-x"
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], ModelConfig]:
    """(float tensors under the names of Networks and, behind rate., RateModel; bitstream tensors; config) of a preset.

    The ladder is put together from the λ files; it holds the rungs that are there. Raises WeightsError.
    """
    import torch

    folder = find_weights(root) / preset
    rungs = sorted(folder.glob("lambda-*.safetensors"), key=lambda path: float(path.stem.removeprefix("lambda-")))
    if not rungs:
        known = ", ".join(sorted(p.name for p in folder.parent.iterdir() if p.is_dir())) or "nothing"
        raise WeightsError(f"no checkpoint of {preset} in {folder.parent}; there is {known}")
    base_hash = file_hash(folder / BASE)
    parts = [_read_rung(path, base_hash) for path in rungs]
    tensors, config = _read_base(folder, [lam for lam, _ in parts])
    integers = {name: tensors.pop(name) for name in bitstream_names(list(tensors))}
    for name in LADDER_TENSORS:
        tensors[f"ladder.{name}"] = torch.stack([rung[name] for _, rung in parts])
    tensors["ladder.log_lambda"] = torch.tensor([lam for lam, _ in parts], dtype=torch.float64).log().float()
    return tensors, integers, config


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from None


def _read_rung(path: Path, base_hash: str) -> tuple[float, dict[str, torch.Tensor]]:
    metadata, tensors = read_metadata(path), _read(path)
    if metadata.get("base") != base_hash:
        raise WeightsError(f"{path.name} belongs to another {BASE} than the one beside it; install the weights anew")
    if set(tensors) != set(LADDER_TENSORS):
        raise WeightsError(f"{path.name} does not hold exactly {', '.join(LADDER_TENSORS)}")
    if metadata.get("tensors") != tensor_hash(tensors, tensors):
        raise WeightsError(f"{path.name} is damaged: its tensors do not have the hash it states")
    return float(metadata["lambda"]), tensors


def _read_base(folder: Path, ladder: list[float] | None) -> tuple[dict[str, torch.Tensor], ModelConfig]:
    path = folder / BASE
    metadata, tensors = read_metadata(path), _read(path)
    if metadata.get("tensors") != tensor_hash(tensors, tensors):
        raise WeightsError(f"{path.name} is damaged: its tensors do not have the hash it states")
    try:
        values = json.loads(metadata["config"])
        if ladder is not None:
            values["ladder"] = ladder
        return tensors, ModelConfig.from_json(json.dumps(values))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} does not say what architecture it is: {error}") from None


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises WeightsError where what was asked for is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise WeightsError("no CUDA device is available; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the device has matrix units or instructions for it, else float32."""
    import torch

    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
