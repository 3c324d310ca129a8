"""`cdcodec export`: a run's averaged floats → integers and tables → checkpoints."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from cdcodec.bits.tables import gaussian_tables, nearest_scale_thresholds, stored, tables_from_pmfs
from cdcodec.codec import encode
from cdcodec.config import ModelConfig
from cdcodec.errors import OutputError, WeightsError
from cdcodec.lab.critic import CRITIC
from cdcodec.lab.data import find_images, read_named
from cdcodec.lab.plan import commit
from cdcodec.lab.rate import RateModel
from cdcodec.lab.recipe import parse_recipe
from cdcodec.lab.state import load_state
from cdcodec.lab.trainer import averaged_models
from cdcodec.nets.integer import IntegerHyperSynthesis
from cdcodec.nets.networks import Networks
from cdcodec.weights import (
    BASE,
    FORMAT,
    LADDER_TENSORS,
    Checkpoint,
    bitstream_names,
    file_hash,
    load_model,
    read,
    read_metadata,
    save,
    tensor_hash,
)

LICENCE = "Apache-2.0"
OURS = (BASE, "lambda-*.safetensors")
LABELS = ("format", "preset", "rho", "licence", "bitstream", "shares")


def export_run(run: Path, out: Path, photographs: Path | None = None, *, force: bool = False) -> list[Path]:
    """Writes out/<preset>/ from the state of a training run; returns the files.

    photographs: a folder to measure each λ's typical bpp on, in real bytes; a model that shares another's files has
    their rates. force: replace what is there, once all is made. Raises OutputError, TrainingError, WeightsError,
    ImageError.
    """
    state = load_state(run)
    recipe = parse_recipe(state["recipe"], str(run))
    preset, weights = recipe.preset, recipe.weights
    if (out / preset).exists() and not force:
        raise OutputError(f"{out / preset} exists already; --force replaces it")
    networks, rate = averaged_models(recipe, state["average"], torch.device("cpu"))
    networks.config = dataclasses.replace(
        networks.config, lambda_scale=weights.lambda_scale, lambda_power=weights.lambda_power
    )
    about = {
        "steps": str(state["trained"] + state["step"]),
        "phases": json.dumps(recipe.to_dict()["phases"]),
        "data": state["data"],
        "commit": commit() or "unknown",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as scratch:
            made = Path(scratch) / preset
            write_checkpoints(networks, rate, made, about, {}, beside=out)
            if photographs is not None and not networks.config.shares:
                bpp = typical_bpp(load_model(scratch, preset=preset), photographs)
                write_checkpoints(networks, rate, made, about, bpp)
            if (out / preset).exists():
                shutil.copytree(out / preset, made, ignore=shutil.ignore_patterns(*OURS), dirs_exist_ok=True)
            if state.get("critic"):  # else one that is there stays
                _write_critic(state["critic"][0], networks.config, made / CRITIC)
            _exchange(made, out / preset, Path(scratch) / "before")
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from None
    return sorted((out / preset).iterdir())


def _write_critic(tensors: dict[str, Tensor], config: ModelConfig, path: Path) -> None:
    """The critic in bfloat16, for trainings that begin with these weights; nothing else reads it."""
    metadata = {"format": FORMAT, "preset": config.preset, "config": config.to_json(), "licence": LICENCE}
    rounded = {n: v.cpu().to(torch.bfloat16 if v.ndim else v.dtype).contiguous() for n, v in tensors.items()}
    save(rounded, path, metadata)


def _exchange(made: Path, place: Path, aside: Path) -> None:
    """Moves a folder to its place, and what is there aside; back again if that fails."""
    if place.exists():
        place.rename(aside)
    try:
        made.rename(place)
    except BaseException:
        if aside.exists():
            aside.rename(place)
        raise


def typical_bpp(checkpoint: Checkpoint, folder: Path) -> dict[float, float]:
    """λ → mean bits per pixel of real files over the pictures of a folder."""
    rates: dict[float, list[float]] = {lam: [] for lam in checkpoint.ladder}
    for path in find_images(folder):
        pixels = read_named(path)
        for lam, values in rates.items():
            values.append(8 * len(encode(pixels, checkpoint, lam)) / (pixels.shape[0] * pixels.shape[1]))
    return {lam: sum(values) / len(values) for lam, values in rates.items()}


def write_checkpoints(
    networks: Networks,
    rate: RateModel,
    folder: Path,
    about: dict[str, str],
    bpp: dict[float, float],
    *,
    beside: Path | None = None,
) -> None:
    """base.safetensors and one file per λ. Networks are rounded to bfloat16 first, so that the integers are the twin
    of what is shipped. The base is written before the λ that name it.

    bpp: typical of each λ, as far as known. beside: the weights folder of a preset that is shared; None: the folder's.
    """
    config = networks.config
    floats = {n: v for n, v in networks.state_dict().items() if not n.startswith("ladder.")}
    floats = {n: v.to(torch.bfloat16).cpu().contiguous() for n, v in floats.items()}
    networks.load_state_dict({**networks.state_dict(), **{n: v.float() for n, v in floats.items()}})
    base = {**floats, **_rate_tensors(rate), **integer_tensors(networks, rate, config)}
    metadata = {"format": FORMAT, "preset": config.preset, "licence": LICENCE, **about}
    metadata["bitstream"] = tensor_hash(base, bitstream_names(base))
    metadata["parametrisation"], metadata["rho"] = config.parametrisation, f"0…{config.rho_max:g}"
    if config.shares:
        shared = (beside or folder.parent) / config.shares / BASE
        stated, theirs = read(shared)
        both = [name for name in base if not name.startswith("unet.")]
        if not theirs.keys() >= set(both) or tensor_hash(base, both) != tensor_hash(theirs, both):
            raise WeightsError(f"{config.preset} was trained on other weights than those in {shared.parent}")
        base = {name: value for name, value in base.items() if name.startswith("unet.")}
        metadata["shares"], metadata["shared"] = config.shares, file_hash(shared)
        of_files = ModelConfig.from_json(stated["config"])  # whose λ it is
        config = dataclasses.replace(config, lambda_scale=of_files.lambda_scale, lambda_power=of_files.lambda_power)
        rungs = {lam: read_metadata(shared.with_name(f"lambda-{lam:g}.safetensors")) for lam in config.ladder}
        bpp = {lam: float(labels["bpp"]) for lam, labels in rungs.items() if "bpp" in labels} | bpp  # of the same files
    folder.mkdir(parents=True, exist_ok=True)
    save(base, folder / BASE, {**metadata, "config": config.to_json()})
    base_hash = file_hash(folder / BASE)
    for i, lam in enumerate(config.ladder):
        rung = {name: getattr(networks.ladder, name).detach()[i].cpu().clone() for name in LADDER_TENSORS}
        known = {"bpp": f"{bpp[lam]:.4f}"} if lam in bpp else {}
        labels = {key: metadata[key] for key in LABELS if key in metadata}
        path = folder / f"lambda-{lam:g}.safetensors"
        save(rung, path, {**labels, **known, "lambda": repr(lam), "base": base_hash})


def integer_tensors(networks: Networks, rate: RateModel, config: ModelConfig) -> dict[str, Tensor]:
    """The bitstream part: integer.* and tables.*."""
    integer = IntegerHyperSynthesis.of(networks.hyper_synthesis, nearest_scale_thresholds(), config)
    z = tables_from_pmfs([(first, pmf.numpy()) for first, pmf in rate.pmf_z()])
    y = gaussian_tables(config.density_weights, config.density_scales)
    tables = {name: torch.from_numpy(part) for name, part in stored(z, y).items()}
    return {**integer.tensors(), **tables}


def _rate_tensors(rate: RateModel) -> dict[str, Tensor]:
    return {f"rate.{n}": p.detach().float().cpu().contiguous() for n, p in rate.named_parameters()}
