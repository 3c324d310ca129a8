"""From what the user asks for to a Plan: presets, our codec's ladder and settings, which peers are at hand."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cdcodec import __version__, files, weights
from cdcodec.errors import CdcodecError, SettingError, WeightsError
from cdcodec.lab import metrics
from cdcodec.lab.codecs import PEERS, Codec, External, Own, Setting
from cdcodec.lab.evaluate import Judging, Plan, survey

Template = Mapping[str, float]
"""Decode settings by name; what is not named is the checkpoint's default."""

OURS = ("compact-x",)
FIDELITY: Template = {"steps": 1, "gamma": 0.0, "rho": 0.0}


@dataclass(frozen=True)
class Preset:
    """models: presets of weights. settings: how ours decodes. every: takes each n-th λ of the ladder only.
    effort: of encoding.
    """

    models: tuple[str, ...]
    settings: tuple[Template, ...]
    peers: tuple[str, ...]
    measures: tuple[str, ...]
    every: int = 1
    effort: int = 0


PRESETS = {
    "standard": Preset(OURS, ({}, FIDELITY), ("jpeg", "webp", "avif", "jxl", "heic"), tuple(metrics.MEASURES)),
    "quality": Preset(
        OURS, (FIDELITY, {"rho": 0.9}), ("jpeg", "webp", "avif", "heic"), ("psnr", "lpips-alex"), effort=5
    ),
    "figures": Preset(
        ("compact-x", "compact-eps"),
        (
            {},
            {"rho": 0.0},
            *({"steps": n} for n in (0, 1, 2, 4, 8, 17, 33, 65)),
            *({"steps": 17, "gamma": g} for g in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)),
            *({"rho": r} for r in (0.3, 0.6, 0.9)),
        ),
        ("jpeg", "webp", "avif", "heic"),
        ("psnr", "ms-ssim", "lpips-alex", "lpips-squeeze"),
        every=3,
    ),
}
"""quality is the table of the README; figures are the sweeps of the paper's figures 4 and 5."""


@dataclass(frozen=True)
class Request:
    """What the user asks for; None and empty tuples leave it to the preset."""

    folder: Path
    out: Path
    preset: str = "standard"
    models: tuple[str, ...] = ()
    effort: int | None = None
    lambdas: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    gammas: tuple[float, ...] = ()
    rhos: tuple[float, ...] = ()
    seed: int = 0
    peers: tuple[str, ...] | None = None
    programs: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    metric_weights: Path | None = None
    weights: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    limit: int | None = None
    crop: int | None = None
    jobs: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Prepared:
    """plan: what can be done. missing: a line for each codec or measure not to be had; broken: for each picture."""

    plan: Plan
    missing: tuple[str, ...]
    broken: tuple[str, ...]


def prepare(request: Request) -> Prepared:
    """Look at the pictures, the weights, the peers and the measures. Raises CdcodecError if nothing could be done."""
    preset = PRESETS[request.preset]
    missing: list[str] = []
    codecs: list[Codec] = []
    for model in () if request.models == ("none",) else dict.fromkeys(request.models or preset.models):
        try:
            codecs.append(own(request, preset, model, missing))
        except WeightsError as error:
            if request.models or model == preset.models[0]:
                raise
            missing.append(f"{model}: {error}")
    peers = preset.peers if request.peers is None else request.peers
    candidates: list[Codec] = [PEERS[name] for name in dict.fromkeys(peers)]
    candidates += [External.parse(text) for text in request.programs]
    for peer in candidates:
        reason = peer.missing()
        if reason is None:
            codecs.append(peer)
        else:
            missing.append(f"{peer.name}: {reason}")
    names = [codec.name for codec in codecs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CdcodecError(f"two codecs are called {twice[0]}: give one of them another name")
    if not codecs:
        raise CdcodecError(f"there is no codec to measure{''.join(f'; {line}' for line in missing)}")
    measures, reasons = metrics.usable(request.measures or preset.measures, request.metric_weights)
    missing += metrics.grouped(reasons)
    if not measures:
        raise CdcodecError(f"there is nothing to measure by{''.join(f'; {line}' for line in missing)}")
    sources, broken = survey(request.folder, request.limit, request.out, request.crop)
    if not sources:
        raise CdcodecError(f"{request.folder} holds no picture that can be read")
    alone = torch.get_num_threads() if request.jobs == 1 else max(1, (os.cpu_count() or 1) // request.jobs)
    place = "cuda" if request.device != "cpu" and torch.cuda.is_available() else "cpu"
    judging = Judging(tuple(measures), request.metric_weights, place, request.out / "features")
    plan = Plan(sources, tuple(codecs), judging, request.out, request.jobs, request.threads or alone)
    return Prepared(plan, tuple(missing), tuple(broken))


def own(request: Request, preset: Preset, model: str, notes: list[str]) -> Own:
    """Our codec with its λ and with every decode setting written out; notes gets a line on what cannot be as wished.
    Raises WeightsError, SettingError."""
    root = weights.find_weights(request.weights)
    lam, rho = (values[0] if len(values) == 1 else None for values in (request.lambdas, request.rhos))
    named_one = Own(model, root, request.device, request.precision, (), (), lam=lam, rho=rho)
    checkpoint = named_one.load()
    config = checkpoint.config
    templates: Sequence[Template] = preset.settings
    axes = {"steps": request.steps, "gamma": request.gammas, "rho": request.rhos}
    named = {name: values for name, values in axes.items() if values}
    if named:
        templates = [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]
    settings: list[Setting] = []
    light_head = config.blocks == "compact"
    for beyond in (value for value in request.rhos if not config.rho_min <= value <= config.rho_max):
        notes.append(f"{model} at ρ {beyond:g}: it has {config.rho_min:g} to {config.rho_max:g}; the nearest is taken")
    for template in templates:
        setting = {
            "steps": int(template.get("steps", config.steps)),
            "gamma": float(template.get("gamma", config.gamma)),
            "rho": min(max(float(template.get("rho", config.rho)), config.rho_min), config.rho_max),
            "seed": request.seed,
        }
        if setting not in settings and (setting["steps"] > 0 or light_head):
            settings.append(setting)
    if not settings:
        raise SettingError(f"{model} has no light head to decode with alone; take 1 step or more")
    lambdas = dict.fromkeys(checkpoint.check_lambda(lam) for lam in request.lambdas)
    effort = preset.effort if request.effort is None else request.effort
    try:
        if effort:
            checkpoint.model.check_effort(max(setting["rho"] for setting in settings))
    except (SettingError, WeightsError) as error:
        if request.effort:
            raise
        notes.append(f"{model} without effort: {error}")
        effort = 0
    rungs = tuple(lambdas) or checkpoint.ladder[:: preset.every]
    return replace(named_one, rungs=rungs, settings=tuple(settings), effort=effort)


def record(prepared: Prepared, command: str) -> dict[str, Any]:
    """What run.json tells: the command, the machine, versions, what was missing."""
    plan = prepared.plan
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "cdcodec": __version__,
        "commit": commit(),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if plan.judging.device == "cuda" else None,
            "jobs": plan.jobs,
            "threads": plan.threads,
        },
        "python": platform.python_version(),
        "packages": {**metrics.versions(plan.judging.measures), "pillow": importlib.metadata.version("pillow")},
        "images": [source.name for source in plan.sources],
        "measures": list(plan.judging.measures),
        "codecs": {c.name: {"version": c.version, c.ladder: c.rungs, "settings": c.settings} for c in plan.codecs},
        "missing": list(prepared.missing),
        "broken": list(prepared.broken),
    }


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    files.write(str(path), (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode(), force=True)


def commit() -> str | None:
    """The commit of the checkout this package runs from, if it is one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"], capture_output=True,
                              text=True, timeout=10, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
