"""Checkpoints on disk: safetensors per λ, hashes verified; listed without importing torch.

    weights/compact-x/base.safetensors                     networks, entropy models, integer twin and tables
    weights/compact-x/lambda-0.0128.safetensors            what belongs to that λ, and the hash of its base
    weights/compact-x/judge.safetensors                    the network that encoding with effort asks (nets/judge.py)
    weights/compact-eps/base.safetensors                   its denoiser alone, and the hash of the base of compact-x
    weights/paper-x/lambda-0.0512-rho-0.9.safetensors      all of it in one file: another λ is another model
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdcodec.config import ModelConfig
from cdcodec.device import pick_device, pick_dtype
from cdcodec.errors import WeightsError

if TYPE_CHECKING:
    import torch

    from cdcodec.bits.coder import Tables
    from cdcodec.nets.model import Model

DEFAULT_PRESET, FORMAT, HEADER_LIMIT = "compact-x", "cdcodec-1", 2**24
BASE, JUDGE = "base.safetensors", "judge.safetensors"
LADDER_TENSORS = ("condition", "log_gain", "log_inverse_gain", "log_variance")


@dataclass(frozen=True)
class CheckpointInfo:
    """One λ of one preset as it lies on disk.

    rho: the ρ it serves, as "0.9" or "0…0.9". bytes: without its base. bpp: typical, or None. whole: has no base.
    """

    preset: str
    lam: float
    rho: str
    path: Path
    bytes: int
    bitstream_id: str
    bpp: float | None
    licence: str
    metadata: dict[str, str]

    @property
    def id(self) -> int:
        """What a file's header names: the first four bytes of the bitstream part's hash."""
        return _number(self.bitstream_id)

    @property
    def whole(self) -> bool:
        return "base" not in self.metadata

    def __str__(self) -> str:
        return f"{self.preset} λ {self.lam:g} (ρ {self.rho})"


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
        lam, *ladder = (float(str(np.float32(min(value, 1e30)))) for value in (lam, *self.ladder))
        if len(ladder) == 1 and lam != ladder[0]:
            raise WeightsError(f"these weights of {self.config.preset} are for λ = {ladder[0]:g} alone")
        if not ladder[0] <= lam <= ladder[-1]:
            rungs = ", ".join(f"{rung:g}" for rung in ladder)
            raise WeightsError(f"λ = {lam:g} lies outside the ladder of {self.config.preset}: {rungs}, or between two")
        return lam

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
        if folder.is_dir() and any(folder.glob("*/*.safetensors")):
            return folder
    where = f"in {told}" if told else "beside the package; name a folder with --weights DIR or CDCODEC_WEIGHTS"
    raise WeightsError(f"no weights {where}")


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        raise WeightsError(f"{path} is not a cdcodec checkpoint in safetensors format") from None
    stated = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not stated or metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a cdcodec checkpoint of format {FORMAT}")
    return dict(metadata)


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every λ of every preset in a weights folder, by preset, ρ and λ. Raises WeightsError."""
    found = [_info(path, read_metadata(path)) for path in root.glob("*/lambda-*.safetensors")]
    return sorted(found, key=lambda i: (i.preset, i.rho, i.lam))


def _info(path: Path, m: dict[str, str]) -> CheckpointInfo:
    """What the metadata of a file says. Raises WeightsError."""
    try:
        bpp = float(m["bpp"]) if m.get("bpp") else None
        lam, rho, identity, licence = float(m["lambda"]), m.get("rho", "?"), m["bitstream"], m.get("licence", "?")
        _number(identity)
        return CheckpointInfo(m["preset"], lam, rho, path, path.stat().st_size, identity, bpp, licence, m)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} does not say what it is: {error}") from None


def _number(digest: str) -> int:
    return int.from_bytes(bytes.fromhex(digest)[:4], "little")


def find(
    root: Path,
    *,
    preset: str | None = None,
    lam: float | None = None,
    rho: float | None = None,
    checkpoint: int | None = None,
) -> CheckpointInfo:
    """The checkpoint that is meant, by metadata alone: the one that wrote a file, or of a preset that of λ (and ρ).

    A ladder with a shared base serves every λ within it, so any rung of it is returned. Raises WeightsError if
    nothing or more than one fits, naming what there is.
    """
    there = list_checkpoints(root)
    if preset is None and checkpoint is not None:
        written = [info for info in there if info.id == checkpoint]
        if not written:
            known = ", ".join(sorted({f"{info.preset} {info.id:08x}" for info in there})) or "nothing"
            raise WeightsError(
                f"this file was made with the weights {checkpoint:08x}; {root} holds {known}; "
                "name the folder with the right ones by --weights DIR"
            )
        return min(written, key=lambda info: "shares" in info.metadata)
    preset = preset or DEFAULT_PRESET
    of_preset = [info for info in there if info.preset == preset]
    if not of_preset:
        known = ", ".join(sorted({info.preset for info in there}))
        raise WeightsError(f"no checkpoint of {preset} in {root}; there is {known or 'nothing'}")
    of_preset = [info for info in of_preset if checkpoint in (None, info.id)]
    if not of_preset and checkpoint is not None:
        raise WeightsError(f"this file was made with the weights {checkpoint:08x}, of which {root} holds no {preset}")
    fitting = [i for i in of_preset if not i.whole or (lam in (None, i.lam) and (rho is None or i.rho == f"{rho:g}"))]
    if len(fitting) == 1 or (fitting and not fitting[0].whole):
        return fitting[0]
    problem, known = "several fit" if fitting else "none fits", ", ".join(map(str, of_preset))
    raise WeightsError(f"choose one by λ (and ρ), {problem}: {known}")


def file_hash(path: Path) -> str:
    """SHA-256 of a whole file, hexadecimal. Raises WeightsError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None


def tensor_hash(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> str:
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
    for path in sorted(root.glob("*/*.safetensors")):
        try:
            metadata, _ = read(path)
            if "base" in metadata:
                _read_rung(path, file_hash(path.parent / BASE))
            elif _config(path, metadata, None).shares:
                _read_base(path.parent)
            results.append((path, "ok"))
        except WeightsError as error:
            results.append((path, str(error)))
    return results


def load_model(
    root: str | Path | None = None,
    *,
    checkpoint: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    tile: int | str = "auto",
    compile: bool = False,
    **which: Any,
) -> Checkpoint:
    """A model ready to encode and decode, its hashes verified: the whole ladder, or of imported models one.

    root: weights folder (None: `find_weights`). checkpoint: the id a file names. which: preset, lam, rho, to choose by
    (see `find`); without any of these the weights that ship. device: auto, cpu or cuda. precision: auto, float32 or
    bfloat16, of the networks; the bits never depend on it. tile: work in tiles of this side, at least 512 pixels, for
    less memory; "auto" for large pictures only, "off" never; with paper-x and paper-eps an approximation that may
    show. compile: the denoiser by torch.compile. Raises WeightsError; ValueError for another tile, device or precision.
    """
    return assemble(
        *load_tensors(root, checkpoint=checkpoint, **which), device, precision, tile=tile, compile=compile,
        judge=lambda: read(find(find_weights(root), checkpoint=checkpoint, **which).path.with_name(JUDGE))[1],
    )  # fmt: skip


def assemble(
    floats: Mapping[str, torch.Tensor],
    integers: Mapping[str, torch.Tensor],
    config: ModelConfig,
    device: str = "auto",
    precision: str = "auto",
    **running: Any,
) -> Checkpoint:
    """A model from its tensors (as `load_tensors` gives them) that runs as told (see `load_model`). WeightsError."""
    import torch

    from cdcodec.bits.coder import Tables
    from cdcodec.bits.tables import TableSet
    from cdcodec.nets.integer import IntegerHyperSynthesis
    from cdcodec.nets.model import Model
    from cdcodec.nets.networks import Networks

    try:
        integer = IntegerHyperSynthesis.from_tensors(dict(integers), config)
        parts = ("counts", "first", "length")
        z, y = (TableSet.unpack(*(integers[f"tables.{which}.{part}"].numpy() for part in parts)) for which in "zy")
        tables = Tables(z=z, y=y)
        if len(z) != config.hyper:
            raise ValueError(f"z needs {config.hyper} tables, not {len(z)}")
        own = {name: value for name, value in floats.items() if not name.startswith("rate.")}
        with torch.device("meta"):  # nothing is drawn to be replaced, nor more allocated than the file holds
            networks = Networks(config)
        known = networks.state_dict()
        differing = sorted(own.keys() ^ known.keys())
        if differing:
            raise ValueError(f"{differing[0]} is {'not known' if differing[0] in own else 'missing'}")
        for name, value in own.items():
            if not value.is_floating_point() or value.shape != known[name].shape:
                raise ValueError(f"{name} holds {value.dtype} of {tuple(value.shape)}")
        networks.load_state_dict(own, assign=True)  # no copy
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the checkpoint of {config.preset} is damaged: {error}") from None
    place = pick_device(device)
    model = Model(networks, integer, place, pick_dtype(precision, place), **running)
    return Checkpoint(model, tables, _number(tensor_hash(integers, integers)))


def about(root: str | Path | None = None, **which: Any) -> dict[str, str]:
    """The metadata of the checkpoint that `find` chooses, or of its base where it has one. Raises WeightsError."""
    chosen = find(find_weights(root), **which)
    return chosen.metadata if chosen.whole else read_metadata(chosen.path.with_name(BASE))


def load_tensors(
    root: str | Path | None = None, **which: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], ModelConfig]:
    """(float tensors under the names of Networks and, behind rate., the rate model; bitstream tensors; config).

    which: preset, lam, rho, checkpoint, as of `find`. A ladder is put together from the λ files; it holds the rungs
    that are there. Raises WeightsError.
    """
    import torch

    chosen = find(find_weights(root), **which)
    if chosen.whole:
        metadata, tensors = read(chosen.path)
        config = _config(chosen.path, metadata, None)
    else:
        folder = chosen.path.parent
        base_hash = file_hash(folder / BASE)
        rungs = dict(sorted(dict(_read_rung(p, base_hash) for p in folder.glob("lambda-*.safetensors")).items()))
        metadata, tensors = _read_base(folder)
        config = _config(folder / BASE, metadata, list(rungs))
        for name in LADDER_TENSORS:
            values = [rung[name] for rung in rungs.values()]
            if len({value.shape for value in values}) > 1:
                raise WeightsError(f"the λ of {folder} do not fit together: their {name} differ in shape")
            tensors[f"ladder.{name}"] = torch.stack(values)
        tensors["ladder.log_lambda"] = torch.tensor(list(rungs), dtype=torch.float64).log().float()
    integers = {name: tensors.pop(name) for name in bitstream_names(list(tensors))}
    return tensors, integers, config


def save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> Path:
    """Writes a checkpoint file with the hash of its tensors, beside its place and then renamed: a failed or interrupted
    run leaves nothing. Raises WeightsError."""
    from safetensors.torch import save as serialised

    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        named = dict(tensors)
        # Not by save_file, whose files nobody else may read.
        beside.write_bytes(serialised(named, {**metadata, "tensors": tensor_hash(named, named)}))
        os.replace(beside, path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)
    return path


def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a checkpoint file, its hash verified. Raises WeightsError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from None
    if metadata.get("tensors") != tensor_hash(tensors, tensors):
        raise WeightsError(f"{path.name} is damaged: its tensors do not have the hash it states")
    return metadata, tensors


def _read_base(folder: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The base of a ladder; one that shares another preset's, with all that it does not hold itself."""
    metadata, tensors = read(folder / BASE)
    if "shares" not in metadata:
        return metadata, tensors
    shared = folder.parent / metadata["shares"] / BASE
    if file_hash(shared) != metadata.get("shared"):
        raise WeightsError(f"{folder.name} belongs to another {metadata['shares']} than the one beside it")
    return metadata, {**read(shared)[1], **tensors}


def _read_rung(path: Path, base_hash: str) -> tuple[float, dict[str, torch.Tensor]]:
    metadata, tensors = read(path)
    if metadata.get("base") != base_hash:
        raise WeightsError(f"{path.name} belongs to another {BASE} than the one beside it; install the weights anew")
    if set(tensors) != set(LADDER_TENSORS):
        raise WeightsError(f"{path.name} does not hold exactly {', '.join(LADDER_TENSORS)}")
    return _info(path, metadata).lam, tensors


def _config(path: Path, metadata: dict[str, str], ladder: list[float] | None) -> ModelConfig:
    """The architecture that a file states, with the ladder found beside it."""
    try:
        values = json.loads(metadata["config"])
        if ladder is not None:
            values["ladder"] = ladder
        return ModelConfig.from_json(json.dumps(values))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path.name} does not say what architecture it is: {error}") from None
