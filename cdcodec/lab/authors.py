"""`cdcodec weights import` and `fetch`: the authors' .pt files (github buggyyang/CDC_compression) → our checkpoints.

A .pt is a pickle: it is read with `weights_only`, which runs nothing. Their transposed 5×5 convolutions become 3×3 ones
with pixel-shuffle, exactly: each of the four outputs of an input pixel has taps within its 3×3 neighbourhood.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cdcodec import codec, weights
from cdcodec.bits.tables import gaussian_tables, ideal_bits, nearest_scale_thresholds, stored, tables_from_pmfs
from cdcodec.config import PRESETS, ModelConfig
from cdcodec.errors import CdcodecError, WeightsError
from cdcodec.nets.integer import IntegerHyperSynthesis
from cdcodec.nets.networks import Networks
from cdcodec.nets.paper import Attention, Block

REPOSITORY = "rhyang/CDC_params"
FILE_NAME = re.compile(r"-b(?P<lam>\d+(?:\.\d+)?)(?=-).*?(?P<kind>-x-cosine|-noise-linear).*?aux(?P<rho>\d+(?:\.\d+)?)")
PRESET_OF_KIND = {"-x-cosine": "paper-x", "-noise-linear": "paper-eps"}
LICENCE = "not stated by its authors"
NOT_NEEDED = ("loss_fn_vgg.", "train_")
LIKELIHOOD_MIN = 1e-9
USUAL_BITS = 20
"""Rarer symbols do not count for the loss: tables and likelihoods end at different costs."""
LOSS_LIMIT = 0.01
"""An integer twin that loses more of the rate than this share is refused."""

TYPICAL_BPP = {
    ("paper-x", 0.0, 0.0032): 0.4394,
    ("paper-x", 0.0, 0.0064): 0.2872,
    ("paper-x", 0.0, 0.0128): 0.1632,
    ("paper-x", 0.9, 0.0512): 0.7444,
    ("paper-x", 0.9, 0.1024): 0.5388,
    ("paper-x", 0.9, 0.2048): 0.3438,
}
"""(preset, ρ, λ) → mean over 100 aerial photographs of 20 megapixels (github rayford295/sc26-cdc-deltaai)."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Imported:
    """What an import wrote. loss: share of the rate that the integers lose on a synthetic picture."""

    path: Path
    preset: str
    lam: float
    rho: float
    loss: float


def import_checkpoint(
    source: Path, root: Path, *, lam: float | None = None, rho: float | None = None, force: bool = False
) -> Imported:
    """Writes root/<preset>/lambda-…-rho-….safetensors from one of the authors' .pt files.

    lam, rho: what it was trained with, if its name does not say so. force: replace an existing file. Raises
    WeightsError, with nothing written, for a file that is not theirs, broken or malicious, or if the test fails.
    """
    state = read_state(source)
    kind, named_lam, named_rho = parse_name(source.name)
    preset = "paper-eps" if "context_fn.enc.0.2.conv.weight" in state else "paper-x"
    if kind not in (None, preset):
        raise WeightsError(f"{source.name} is called {kind}, but its tensors are those of {preset}")
    lam, rho = named_lam if lam is None else lam, named_rho if rho is None else rho
    if lam is None or rho is None:
        raise WeightsError(f"the name of {source.name} does not tell λ and ρ; give --lambda and --rho")
    target = root / preset / file_name(lam, rho)
    if target.exists() and not force:
        raise WeightsError(f"{target} exists already; --force replaces it")
    config = dataclasses.replace(PRESETS[preset], ladder=(lam,), rho_min=rho, rho_max=rho, rho=rho)
    try:
        networks, prior = convert(state, config)
        del state
        integers = integer_tensors(networks, prior, config)
        loss = self_test(networks, prior, integers)
    except ValueError as error:
        raise WeightsError(f"{source.name} cannot be turned into integers: {error}") from None
    metadata = {
        "format": weights.FORMAT,
        "preset": preset,
        "config": config.to_json(),
        "lambda": repr(lam),
        "rho": f"{rho:g}",
        "parametrisation": config.parametrisation,
        "licence": LICENCE,
        "source": source.name,
        "source_sha256": weights.file_hash(source),
        "bitstream": weights.tensor_hash(integers, integers),
    }
    if (preset, rho, lam) in TYPICAL_BPP:
        metadata["bpp"] = f"{TYPICAL_BPP[preset, rho, lam]:.4f}"
    tensors = {**networks.state_dict(), **{f"rate.{n}": t for n, t in prior.items()}, **integers}
    return Imported(weights.save(tensors, target, metadata), preset, lam, rho, loss)


def fetch(
    preset: str, root: Path, *, lam: float | None = None, rho: float | None = None, force: bool = False
) -> Iterator[Imported]:
    """Downloads the authors' files of a preset (all, or those of λ and ρ) through huggingface_hub and imports each.

    Those that are there already are passed over unless `force`. Raises WeightsError.
    """
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        raise WeightsError("huggingface_hub is not installed: pip install 'cdcodec[hub]'") from None
    try:
        names = sorted(name for name in hub.list_repo_files(REPOSITORY) if name.endswith(".pt"))
        wanted = []
        for name in names:
            kind, its_lam, its_rho = parse_name(name)
            if kind == preset and lam in (None, its_lam) and rho in (None, its_rho):
                wanted.append((name, its_lam, its_rho))
        if not wanted:
            raise WeightsError(f"{REPOSITORY} holds no such checkpoint of {preset}; it holds {', '.join(names)}")
        for name, its_lam, its_rho in wanted:
            if force or not (root / preset / file_name(its_lam, its_rho)).exists():
                yield import_checkpoint(Path(hub.hf_hub_download(REPOSITORY, name)), root, force=force)
    except CdcodecError:
        raise
    except Exception as error:
        raise WeightsError(f"downloading from {REPOSITORY} failed: {' '.join(str(error).split())}") from error


def parse_name(name: str) -> tuple[str | None, float | None, float | None]:
    """(preset, λ, ρ) as one of the authors' file names tells them; None for all where it does not."""
    found = FILE_NAME.search(name)
    return (PRESET_OF_KIND[found["kind"]], float(found["lam"]), float(found["rho"])) if found else (None, None, None)


def file_name(lam: float | None, rho: float | None) -> str:
    """What the import of a checkpoint is called."""
    return f"lambda-{lam:g}-rho-{rho:g}.safetensors"


def read_state(path: Path) -> State:
    """The tensors of a .pt, the averaged ones where there are such, under the authors' names. Raises WeightsError."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    except Exception as error:
        line = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path.name} is no checkpoint that can be read safely: {line}") from None
    parts = [data.get(name) for name in ("ema", "model")] if isinstance(data, dict) else []
    for part in (*parts, data):
        if isinstance(part, dict):
            for prefix in ("ema_model.", "module.", ""):
                names = [name for name in part if isinstance(name, str) and name.startswith(prefix)]
                state = {name.removeprefix(prefix): part[name] for name in names}
                if any(name.startswith("denoise_fn.") for name in state):
                    return {n: v for n, v in state.items() if not n.startswith(NOT_NEEDED)}
    raise WeightsError(f"{path.name} holds no tensors of the authors' models (none called denoise_fn.*)")


def convert(state: State, config: ModelConfig) -> tuple[Networks, State]:
    """Networks and the factorised prior's tensors from the authors' state. Raises WeightsError unless it holds exactly
    the floats of this architecture."""
    networks = Networks(config).requires_grad_(False).eval()
    left = dict(state)

    def read(name: str, *shape: int) -> Tensor:
        tensor = left.pop(name, None)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise WeightsError(f"the tensor {name} is missing: not a complete checkpoint of {config.preset}")
        if tensor.shape != shape or not tensor.is_floating_point():
            raise WeightsError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, where {config.preset} has {shape}")
        if not bool(tensor.isfinite().all()):
            raise WeightsError(f"{name} holds values that are not finite")
        return tensor.float()

    ours = {f"ladder.{name}": torch.zeros(value.shape) for name, value in networks.ladder.state_dict().items()}
    ours["ladder.log_lambda"] = torch.tensor(config.ladder, dtype=torch.float64).log().float()
    ours |= _compressor(networks, read, "paper-eps" == config.preset)
    ours |= _unet(networks, read)
    prior = _prior(config, read)
    if left:
        raise WeightsError(f"{min(left)} and {len(left) - 1} other tensors do not belong to {config.preset}")
    networks.load_state_dict(ours)
    return networks, prior


Read = Callable[..., Tensor]


def _compressor(networks: Networks, read: Read, with_gaps: bool) -> State:
    """Encoder, decoder and hyper-networks. Their ε code has an empty module between block and resampling."""
    second = 2 if with_gaps else 1
    ours: State = {}
    for part, theirs, resample in ((networks.analysis, "enc", "downs"), (networks.synthesis, "dec", "ups")):
        name = "analysis" if theirs == "enc" else "synthesis"
        for i, block in enumerate(part.levels):
            ours |= _block(block, read, f"context_fn.{theirs}.{i}.0", f"{name}.levels.{i}")
            layer = getattr(part, resample)[i]
            ours |= _plain(layer, read, f"context_fn.{theirs}.{i}.{second}.conv", f"{name}.{resample}.{i}")
    for i, layer in enumerate(networks.hyper_analysis.layers):
        ours |= _plain(layer, read, f"context_fn.hyper_enc.{i}.0", f"hyper_analysis.layers.{i}")
    *inner, last = networks.hyper_synthesis.layers
    for i, layer in enumerate(inner):
        c_in, c_out = layer.in_channels, layer.out_channels // 4
        theirs, name = f"context_fn.hyper_dec.{i}.0", f"hyper_synthesis.layers.{i}"
        ours[f"{name}.weight"] = shuffled(read(f"{theirs}.weight", c_in, c_out, 5, 5))
        ours[f"{name}.bias"] = read(f"{theirs}.bias", c_out).repeat_interleave(4)
    for leaf, value in _plain(last, read, f"context_fn.hyper_dec.{len(inner)}.0", "").items():
        mean, scale = value.chunk(2)
        ours[f"hyper_synthesis.layers.{len(inner)}{leaf}"] = torch.cat((scale, mean))
    return ours


def _unet(networks: Networks, read: Read) -> State:
    net, theirs = networks.unet, "denoise_fn"
    ours = _plain(net.embed_in, read, f"{theirs}.time_mlp.0", "unet.embed_in")
    ours |= _plain(net.embed_out, read, f"{theirs}.time_mlp.2", "unet.embed_out")
    for side, levels, resample in (("downs", net.down_levels, net.downs), ("ups", net.up_levels, net.ups)):
        name = "unet.down_levels" if side == "downs" else "unet.up_levels"
        for i, level in enumerate(levels):
            ours |= _block(level.block1, read, f"{theirs}.{side}.{i}.0", f"{name}.{i}.block1")
            ours |= _block(level.block2, read, f"{theirs}.{side}.{i}.1", f"{name}.{i}.block2")
            ours |= _attention(level.attention, read, f"{theirs}.{side}.{i}.2.fn", f"{name}.{i}.attention")
        for i, layer in enumerate(resample):
            ours |= _plain(layer, read, f"{theirs}.{side}.{i}.3.conv", f"unet.{side}.{i}")
    ours |= _block(net.middle1, read, f"{theirs}.mid_block1", "unet.middle1")
    ours |= _attention(net.middle_attention, read, f"{theirs}.mid_attn.fn", "unet.middle_attention")
    ours |= _block(net.middle2, read, f"{theirs}.mid_block2", "unet.middle2")
    ours |= _norm(read, f"{theirs}.final_conv.0", "unet.norm", len(net.norm.weight))
    return ours | _plain(net.head, read, f"{theirs}.final_conv.1", "unet.head")


def _plain(layer: Any, read: Read, theirs: str, ours: str) -> State:
    return {f"{ours}.{leaf}": read(f"{theirs}.{leaf}", *getattr(layer, leaf).shape) for leaf in ("weight", "bias")}


def _norm(read: Read, theirs: str, ours: str, channels: int) -> State:
    leaves = {"weight": "g", "bias": "b"}
    return {f"{ours}.{leaf}": read(f"{theirs}.{name}", 1, channels, 1, 1).flatten() for leaf, name in leaves.items()}


def _block(block: Block, read: Read, theirs: str, ours: str) -> State:
    c_out, c_in, kernel, _ = block.conv1.weight.shape
    extra = block.context_conv.in_channels if block.context_conv else 0
    weight = read(f"{theirs}.block1.block.0.weight", c_out, c_in + extra, kernel, kernel)
    found = {"conv1.weight": weight[:, :c_in], "conv1.bias": read(f"{theirs}.block1.block.0.bias", c_out)}
    found |= _norm(read, f"{theirs}.block1.block.1", "norm1", c_out)
    found |= _norm(read, f"{theirs}.block2.block.1", "norm2", c_out)
    found |= _plain(block.conv2, read, f"{theirs}.block2.block.0", "conv2")
    if block.shift is not None:
        found |= _plain(block.shift, read, f"{theirs}.mlp.1", "shift")
    shortcut = torch.eye(c_out)[:, :, None, None]  # theirs has no layer where [x, context] has c_out channels already
    if c_in + extra != c_out:
        shortcut = read(f"{theirs}.res_conv.weight", c_out, c_in + extra, 1, 1)
        found["shortcut.bias"] = read(f"{theirs}.res_conv.bias", c_out)
    elif extra:
        found["shortcut.bias"] = torch.zeros(c_out)
    if extra or c_in != c_out:
        found["shortcut.weight"] = shortcut[:, :c_in]
    if extra:
        found |= {"context_conv.weight": weight[:, c_in:], "context_shortcut.weight": shortcut[:, c_in:]}
    return {f"{ours}.{leaf}": value for leaf, value in found.items()}


def _attention(attention: Attention, read: Read, theirs: str, ours: str) -> State:
    c = len(attention.bias)
    query, key, value = read(f"{theirs}.fn.to_qkv.weight", 3 * c, c, 1, 1)[:, :, 0, 0].chunk(3)
    out, bias = read(f"{theirs}.fn.to_out.weight", c, c, 1, 1)[:, :, 0, 0], read(f"{theirs}.fn.to_out.bias", c)
    found = {"query": query, "key": key, "value": value, "out": out, "bias": bias}
    return {f"{ours}.{leaf}": t for leaf, t in found.items()} | _norm(read, f"{theirs}.norm", f"{ours}.norm", c)


def shuffled(weight: Tensor) -> Tensor:
    """ConvTranspose2d(kernel 5, stride 2, padding 2, output_padding 1) as a 3×3 convolution and pixel_shuffle 2.

    weight (C_in, C_out, 5, 5) → (4·C_out, C_in, 3, 3). Output row 2m + a takes input row m + d with kernel row
    a + 2 − 2d.
    """
    c_in, c_out = weight.shape[:2]
    padded = F.pad(weight, (0, 1, 0, 1))  # kernel row 5 does not exist: zeros
    rows = torch.tensor([[a + 2 - 2 * d for d in (-1, 0, 1)] for a in (0, 1)])
    taps = padded[:, :, rows][..., rows]  # (C_in, C_out, a, d_row, b, d_column)
    return taps.permute(1, 2, 4, 0, 3, 5).reshape(4 * c_out, c_in, 3, 3)


def _prior(config: ModelConfig, read: Read) -> State:
    """Of their FlexiblePrior: medians (C,), and of layer i weight.i (C, in, out), bias.i and a.i (C, 1, out)."""
    c, widths = config.hyper, (1, 3, 3, 3, 1)
    prior = {"medians": read("context_fn.prior._medians", 1, c, 1, 1).flatten()}
    for i, (a, b) in enumerate(pairwise(widths)):
        prior[f"weight.{i}"] = read(f"context_fn.prior.affine.{i}.weight", c, 1, 1, a, b).reshape(c, a, b)
        prior[f"bias.{i}"] = read(f"context_fn.prior.affine.{i}.bias", c, 1, 1, 1, b).reshape(c, 1, b)
        if i < len(widths) - 2:
            prior[f"a.{i}"] = read(f"context_fn.prior.a.{i}", c, 1, 1, 1, b).reshape(c, 1, b)
    return {name: value.contiguous().clone() for name, value in prior.items()}


def prior_probability(prior: State, z: Tensor) -> Tensor:
    """P(z) of values (C, n) under the density of Ballé et al. 2018, appendix 6.1, and a unit box; float64 (C, n)."""

    def logits(x: Tensor) -> Tensor:
        h = x[:, :, None]
        for i in range(4):
            h = h @ F.softplus(prior[f"weight.{i}"].double()) + prior[f"bias.{i}"].double()
            h = h + prior[f"a.{i}"].double().tanh() * h.tanh() if i < 3 else h
        return h[:, :, 0]

    lower, upper = logits(z.double() - 0.5), logits(z.double() + 0.5)
    sign = -torch.sign(lower + upper)  # differences of sigmoids are taken on the side where they do not cancel
    return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()


def integer_tensors(networks: Networks, prior: State, config: ModelConfig, limit: int = 1024) -> State:
    """The bitstream part. ValueError for networks that do not fit fixed point, or a prior that is none."""
    thresholds = nearest_scale_thresholds()
    twin = IntegerHyperSynthesis.of(networks.hyper_synthesis, thresholds, config, prior["medians"])
    values = torch.arange(-limit, limit + 1, dtype=torch.float64)
    pmf = prior_probability(prior, values + twin.offset.double()[:, 0])
    z = tables_from_pmfs([(-limit, row.numpy()) for row in pmf])
    tables = {name: torch.from_numpy(part) for name, part in stored(z, gaussian_tables()).items()}
    return {**twin.tensors(), **tables}


@torch.inference_mode()
def estimated_bits(networks: Networks, prior: State, x: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits of z (C_z, h/4, w/4) and of y (C_y, h, w) for x (1, 3, H, W) by the continuous likelihoods, none below 1e-9:
    what the authors' code sums up as the rate."""
    y = networks.analysis(x, networks.ladder.condition, x.new_zeros(1), x.dtype)
    medians = prior["medians"][:, None, None]
    z = (networks.hyper_analysis(y) - medians).round() + medians
    log_scale, mean = networks.hyper_synthesis(z, y)
    scale, d = log_scale.double().exp() * 2**0.5, (y - mean).round().double().abs()
    p_y = ((d - 0.5) / scale).erfc() / 2 - ((d + 0.5) / scale).erfc() / 2
    p_z = prior_probability(prior, z[0].flatten(1)).reshape(z.shape[1:])
    of_z, of_y = (-p.clamp(min=LIKELIHOOD_MIN).log2().numpy() for p in (p_z, p_y[0]))
    return of_z, of_y


def self_test(networks: Networks, prior: State, integers: State) -> float:
    """Codes a synthetic picture and reads it back; the share of the rate lost to integers. WeightsError if it fails."""
    checkpoint = weights.assemble(networks.state_dict(), integers, networks.config, "cpu", "float32")
    pixels = synthetic_picture()
    lam = networks.config.ladder[0]
    symbols = checkpoint.model.analyse(pixels, lam)
    read = codec.read_symbols(codec.encode(pixels, checkpoint, lam), checkpoint)[2]
    if not all(np.array_equal(getattr(symbols, name), getattr(read, name)) for name in ("z", "y", "index", "mean")):
        raise WeightsError("the self-test failed: the symbols of a picture do not come back")
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    of_z, of_y = estimated_bits(checkpoint.model.networks, prior, x)
    z, y = of_z < USUAL_BITS, of_y < USUAL_BITS
    rows = np.broadcast_to(np.arange(len(symbols.z))[:, None, None], symbols.z.shape)
    bits = ideal_bits(symbols.z[z], rows[z], checkpoint.tables.z)
    bits += ideal_bits(symbols.y[y], symbols.index[y], checkpoint.tables.y)
    loss = float(bits / (of_z[z].sum() + of_y[y].sum()) - 1)
    if loss > LOSS_LIMIT:
        raise WeightsError(f"the self-test failed: integers lose {100 * loss:.2f} % of the rate of these weights")
    return loss


def synthetic_picture() -> NDArray[np.uint8]:
    """Slopes, edges and noise, uint8 (128, 192, 3)."""
    row, column = np.mgrid[0:128, 0:192]
    waves = np.sin(row / 7) * np.cos(column / 11) + (column // 24 % 2) * 0.6
    colours = np.stack([waves, np.roll(waves, 9, 1), row / 64 - 1], axis=2)
    noise = np.random.RandomState(0).standard_normal(colours.shape) * 0.1
    picture: NDArray[np.uint8] = (127.5 + 60 * (colours + noise)).clip(0, 255).astype(np.uint8)
    return picture

