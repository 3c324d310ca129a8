"""Large pictures tile by tile: the cuts, how far networks look, and that tiles equal the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cdcodec import codec, device
from cdcodec.cli import main
from cdcodec.config import PRESETS, SMALLEST_TILE, ModelConfig
from cdcodec.nets import tiles
from cdcodec.nets.hyperprior import HyperSynthesis
from cdcodec.nets.integer import IntegerHyperSynthesis
from cdcodec.nets.model import Model
from cdcodec.nets.networks import Networks
from cdcodec.nets.tiles import Reach, Tiling
from cdcodec.weights import Checkpoint, load_model

Pixels = NDArray[np.uint8]
SIZES = [((160, 208), 64), ((65, 300), 96), ((192, 64), 48), ((130, 130), 512)]


@pytest.fixture
def tile(tiny: Checkpoint) -> Iterator[Callable[[int | str], Checkpoint]]:
    """tile(side) is the tiny model with tiles of this side."""

    def of(side: int | str) -> Checkpoint:
        tiny.model.tile = side
        return tiny

    yield of
    tiny.model.tile = "auto"


def noise_picture(height: int, width: int) -> Pixels:
    random = np.random.default_rng(height)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return (coarse[:height, :width] + random.integers(-20, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_the_encoder_finds_the_same_symbols(tile, size: tuple[int, int], side: int) -> None:
    pixels = noise_picture(*size)
    whole = codec.read_symbols(codec.encode(pixels, tile("off"), 0.0032), tile("off"))[2]
    cut = codec.read_symbols(codec.encode(pixels, tile(side), 0.0032), tile(side))[2]
    assert np.abs(whole.y).max() > 0
    assert np.array_equal(whole.z, cut.z)
    assert np.abs(whole.y - cut.y).max() <= 1
    assert np.mean(whole.y != cut.y) <= 1e-3  # ties of rounding


@pytest.mark.parametrize(("size", "side"), SIZES)
@pytest.mark.parametrize(("steps", "gamma"), [(0, 0.0), (1, 0.0), (3, 0.8)])
def test_the_decoder_paints_the_same_picture(  # noqa: PLR0917
    tile, monkeypatch, size: tuple[int, int], side: int, steps: int, gamma: float
) -> None:
    floats: list[Tensor] = []
    monkeypatch.setattr("cdcodec.nets.model._pixels", lambda x: floats.append(x) or np.zeros((1, 1, 3), np.uint8))
    data = codec.encode(noise_picture(*size), tile("off"), 0.0032)
    for chosen in ("off", side):
        codec.decode(data, tile(chosen), steps=steps, gamma=gamma, seed=5)
    whole, cut = floats
    assert whole.std() > 0.05
    assert torch.allclose(whole, cut, rtol=0, atol=1e-4)


def narrow(preset: str, **changes: Any) -> ModelConfig:
    narrowed: dict[str, Any] = {"latent": 8, "hyper": 8, "hyper_widths": (8, 8), "embedding": 8}
    return replace(PRESETS[preset], groups=(), phases=(1,), **narrowed, **changes)


SMALL = {"analysis_widths": (8, 8, 8), "unet_widths": (8, 8, 16)}
CONFIGS = {
    "deep": narrow("compact-x", **SMALL, analysis_depth=2, unet_depth=2),
    "shallow": narrow("compact-x", **SMALL, analysis_depth=1, unet_depth=1),
    "paper": narrow("paper-x", analysis_widths=(8, 8, 8, 8), unet_widths=(8,) * 6, context=8),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_network_looks_further_than_its_reach_and_the_reach_is_no_larger_than_needed(name: str) -> None:
    config = CONFIGS[name]
    nets, reach, unit = Networks(config).double(), Reach.of(config), config.padding  # in float32 NaN may spread further
    if config.blocks == "compact":
        nets.analysis.transform.float()
    condition, embedding = (torch.zeros(1, n, dtype=torch.float64) for n in (config.condition, config.embedding))
    rho = torch.zeros(1, dtype=torch.float64)
    height = 2 * max(reach) + 6 * unit

    def unet(x: Tensor, base: Tensor, *pyramid: Tensor) -> list[Tensor]:
        return [nets.unet(x, embedding, nets.unet.contributions(list(pyramid), base))]

    def synthesis(y: Tensor) -> list[Tensor]:
        pyramid, base = nets.synthesis(y, condition, rho, torch.float64)
        return pyramid if base is None else [*pyramid, base]

    def analysis(x: Tensor) -> list[Tensor]:
        return [nets.analysis(x, condition, rho, torch.float64)]

    def furthest(call: Callable[..., list[Tensor]], inputs: list[tuple[int, int]], which: int) -> int:
        """In pixels, from a unit of the output to what it depends on in an input; inputs: (channels, pixels apart)."""
        scale, far = inputs[which][1], 0
        start, end = height // 2 // scale, (height // 2 + unit) // scale
        for first in {*range(start, end, 5), end - 1}:
            given = [torch.zeros(1, c, height // s, unit // s, dtype=torch.float64) for c, s in inputs]
            given[which][:, :, first] = torch.nan  # goes wherever anything depends on it
            for result in call(*given):
                rows = result.isnan().any(dim=3).any(dim=1)[0].nonzero() * (height // result.shape[2]) // unit * unit
                top, bottom = int(rows.min()), int(rows.max())
                far = max(far, bottom - first * scale, (first + 1) * scale - (top + unit))
        return far

    with torch.inference_mode():
        assert reach.analysis - unit < furthest(analysis, [(3, 1)], 0) <= reach.analysis
        assert reach.synthesis - unit < furthest(synthesis, [(8, 16)], 0) <= reach.synthesis
        if config.blocks == "compact":
            inputs = [(3, 1), (3, 1), (8, 4), (8, 8), (8, 16)]
            assert reach.unet - unit < furthest(unet, inputs, 0) <= reach.unet
            assert all(furthest(unet, inputs, which) <= reach.unet for which in (1, 2, 3, 4))


@pytest.mark.parametrize(("size", "tile", "count"), [
    ((640, 4096), "auto", 1), ((2048, 3072), "auto", 6), ((2048, 3072), "off", 1), ((5456, 3648), 1024, 24),
    ((16, 16), 512, 1), ((528, 512), 512, 2), ((16, 65536), 1024, 64),
])  # fmt: skip
def test_a_picture_is_cut_into_nearly_equal_tiles(size: tuple[int, int], tile: int | str, count: int) -> None:
    tiling = Tiling.of(size, PRESETS["compact-x"], tile)
    assert len(tiling.boxes) == count
    assert tiling.single == (count == 1)
    assert sum((bottom - top) * (right - left) for top, bottom, left, right in tiling.boxes) == size[0] * size[1]
    for box in tiling.boxes:
        assert all(edge % 16 == 0 for edge in box)
        assert box.grown(10**6, tiling.whole) == tiling.whole
        if count > 1:
            side = tiles.AUTO["compact"][1] if tile == "auto" else int(tile)
            assert max(box.bottom - box.top, box.right - box.left) <= side
            assert min(size[0], side // 2) <= box.bottom - box.top


def test_tiles_of_the_paper_overlap_and_their_weights_add_up_to_one() -> None:
    for size in ((64, 1088), (576, 1600), (640, 640)):
        tiling = Tiling.of(size, PRESETS["paper-x"], SMALLEST_TILE)
        assert not tiling.single
        picture = torch.rand(1, 3, *size)
        (mixed,) = tiling.run(lambda box, p=picture, w=tiling.whole: [box.of(p, w)], tiles.OVERLAP, blend=True)
        assert torch.allclose(mixed, picture, atol=1e-6)


def test_tiles_of_the_paper_decode_nearly_the_same_picture() -> None:
    """Its attention sees one tile alone; all else equals the whole."""
    config = CONFIGS["paper"]
    torch.manual_seed(0)
    scales = np.logspace(-1, 2, 255)
    integer = IntegerHyperSynthesis.of(HyperSynthesis(config), scales, config)
    model = Model(Networks(config), integer, torch.device("cpu"), torch.float32)
    latent = np.random.default_rng(0).integers(-(2**15), 2**15, (8, 8, 80), dtype=np.int32)
    settings = {"steps": 2, "gamma": 0.8, "seed": 1, "rho": 0.9}
    whole = model.synthesise(latent, 0.0512, **settings)
    model.tile = SMALLEST_TILE
    cut = model.synthesise(latent, 0.0512, **settings)
    difference = np.abs(whole.astype(int) - cut)
    assert whole.std() > 5
    assert 0 < difference.mean() < 5
    pixels = noise_picture(128, 1280)
    symbols = model.analyse(pixels, 0.0512)
    model.tile = "off"
    assert np.mean(symbols.y != model.analyse(pixels, 0.0512).y) <= 1e-3


@pytest.mark.parametrize("tile", [511, 0, -1, "of", "1024", None, 600.0])
def test_what_is_no_tile_is_refused(tiny_weights: Path, tile: Any) -> None:
    with pytest.raises(ValueError, match="tile must be auto, off or at least 512"):
        load_model(tiny_weights, tile=tile)


def test_the_command_line_works_in_tiles(tiny_weights: Path, tmp_path: Path) -> None:
    Image.fromarray(noise_picture(530, 600)).save(tmp_path / "in.png")
    runner, shown = CliRunner(), []
    for tile in ("off", "512"):
        coded, out = tmp_path / f"{tile}.cdc", tmp_path / f"{tile}.png"
        for words in (["encode", tmp_path / "in.png", coded], ["decode", coded, out, "--steps", "1"]):
            done = runner.invoke(main, [*map(str, words), "--tile", tile, "--weights", str(tiny_weights),
                                        "--precision", "float32"])  # fmt: skip
            assert done.exit_code == 0, done.output
        shown.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(shown[0] - shown[1]).max() <= 1


@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize("tile", ["", "on", "511", "-1024", "1e3", "1024.0", "100000", "１０２４"])
def test_the_command_line_refuses_what_is_no_tile(command: str, tile: str) -> None:
    done = CliRunner().invoke(main, [command, "in", "out.cdc", "--tile", tile])
    assert done.exit_code == 2
    assert "neither auto nor off nor a number from 512" in done.output


def test_keeping_freed_memory_is_harmless_where_there_is_no_mallopt(monkeypatch) -> None:
    for error in (AttributeError, OSError, TypeError):
        monkeypatch.setattr("ctypes.CDLL", mock.Mock(side_effect=error))
        device.keep_freed_memory()
    called = mock.Mock()
    monkeypatch.setattr("ctypes.CDLL", called)
    device.keep_freed_memory()
    assert {call.args for call in called.return_value.mallopt.call_args_list} == {(-1, 2**30), (-3, 2**30)}


@pytest.mark.slow
def test_a_compiled_denoiser_paints_the_same_picture(tiny_weights: Path, photograph: Pixels) -> None:
    plain, compiled = (load_model(tiny_weights, device="cpu", precision="float32", compile=c) for c in (False, True))
    data = codec.encode(photograph, plain, 0.0128)
    settings = {"steps": 3, "gamma": 0.8}
    expected, painted = (codec.decode(data, model, **settings)[0].astype(int) for model in (plain, compiled))
    assert np.abs(expected - painted).max() <= 1
