"""The spine: pictures of any size there and back, and what must not depend on machine, precision or settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cdcodec import codec
from cdcodec.bits import container
from cdcodec.errors import CdcodecError, CorruptError, ImageError, SettingError, SymbolMismatchError, WeightsError
from cdcodec.weights import Checkpoint, load_model

Pixels = NDArray[np.uint8]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (17, 33), (64, 64), (65, 129), (1, 200), (513, 769)])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_any_size_comes_back_in_its_size(tiny: Checkpoint, height: int, width: int, steps: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    decoded, chunks = codec.decode(codec.encode(pixels, tiny, 0.0128, {"icc": b"profile"}), tiny, steps=steps)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == np.uint8
    assert chunks == {"icc": b"profile"}


def test_the_decoder_finds_the_encoders_symbols(tiny: Checkpoint, photograph: Pixels) -> None:
    symbols = tiny.model.analyse(photograph, 0.0128)
    header, _, read = codec.read_symbols(codec.encode(photograph, tiny, 0.0128), tiny)
    assert (header.width, header.height, header.lam) == (96, 64, 0.0128)
    for name in ("z", "y", "index", "mean"):
        assert np.array_equal(getattr(symbols, name), getattr(read, name)), name
    assert np.abs(read.y).max() > 0, "a stream of nothing but zeros would prove little"
    assert len(np.unique(read.index)) > 3


def test_symbols_are_the_same_in_bfloat16_and_on_any_number_of_threads(
    tiny: Checkpoint, tiny_weights: Path, photograph: Pixels
) -> None:
    data = codec.encode(photograph, tiny, 0.0032)
    expected = codec.read_symbols(data, tiny)[2]
    low = load_model(tiny_weights, device="cpu", precision="bfloat16")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            read = codec.read_symbols(data, low)[2]
            assert np.array_equal(read.latent(8), expected.latent(8))
    finally:
        torch.set_num_threads(threads)


def test_a_file_written_in_bfloat16_decodes_in_float32(
    tiny: Checkpoint, tiny_weights: Path, photograph: Pixels
) -> None:
    low = load_model(tiny_weights, device="cpu", precision="bfloat16")
    data = codec.encode(photograph, low, 0.0128)
    ours, theirs = (codec.decode(data, m, steps=2, gamma=0.5)[0].astype(int) for m in (tiny, low))
    assert np.abs(ours - theirs).mean() < 2


def test_the_seed_decides_the_picture(tiny: Checkpoint, photograph: Pixels) -> None:
    data = codec.encode(photograph, tiny, 0.0128)
    first, again, other = (codec.decode(data, tiny, steps=3, gamma=0.8, seed=seed)[0] for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    quiet = [codec.decode(data, tiny, steps=3, gamma=0.0, seed=seed)[0] for seed in (7, 8)]
    assert np.array_equal(*quiet), "without noise there is nothing for the seed to decide"


def test_steps_gamma_and_rho_change_the_picture(tiny: Checkpoint, photograph: Pixels) -> None:
    data = codec.encode(photograph, tiny, 0.0128)
    pictures = [
        codec.decode(data, tiny, steps=steps, gamma=gamma, rho=rho)[0].tobytes()
        for steps, gamma, rho in ((0, 0, 0), (0, 0, 0.9), (1, 0, 0), (4, 0, 0), (4, 0.8, 0), (4, 0.8, 0.9))
    ]
    assert len(set(pictures)) == 6
    assert codec.encode(photograph, tiny, 0.0128, rho=0.0) != data


@torch.inference_mode()
def test_what_is_computed_faster_for_one_picture_is_what_two_would_give(tiny: Checkpoint) -> None:
    nets = tiny.model.networks
    random = torch.Generator().manual_seed(0)
    latent, condition = (torch.randn(2, *shape, generator=random) for shape in ((16, 4, 4), (8,)))
    rho, level, x_t = torch.tensor([0.9, 0.4]), torch.zeros(2), torch.zeros(2, 3, 64, 64)

    def decoded(part: slice, blank: bool) -> list[torch.Tensor]:
        pyramid, base = nets.synthesis(latent[part], condition[part], rho[part], torch.float32)
        told = nets.unet.contributions(pyramid, base)
        variance = torch.full_like(rho[part], 0.01)
        given = (x_t[part], level[part], base, variance, condition[part], rho[part], told)
        return [base, nets.predict(*given, blank=blank)]

    both = decoded(slice(0, 2), False)
    for i in (0, 1):
        for ours, theirs in zip(decoded(slice(i, i + 1), True), both, strict=True):
            assert theirs.std() > 0.05
            assert torch.allclose(ours[0], theirs[i], rtol=0, atol=1e-5)


def test_any_lambda_within_the_ladder(tiny: Checkpoint, photograph: Pixels) -> None:
    sizes = [len(codec.encode(photograph, tiny, lam)) for lam in (0.0024, 0.01, 0.0768)]
    assert sizes[0] > sizes[1] > sizes[2]
    for lam in (0.002, 0.08, float("nan")):
        with pytest.raises(WeightsError, match=r"ladder .*0\.0024, 0\.0032"):
            codec.encode(photograph, tiny, lam)


def test_what_is_no_picture_is_refused(tiny: Checkpoint) -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError):
            codec.encode(wrong, tiny, 0.0128)


def test_settings_out_of_range_are_refused(tiny: Checkpoint, photograph: Pixels) -> None:
    data = codec.encode(photograph, tiny, 0.0128)
    for wrong in ({"steps": -1}, {"gamma": -0.1}, {"gamma": float("nan")}, {"rho": 1.0}, {"seed": -1}):
        with pytest.raises(SettingError, match="decode needs"):
            codec.decode(data, tiny, **wrong)


def test_a_file_for_other_weights_is_refused(tiny: Checkpoint, photograph: Pixels) -> None:
    header, chunks, payload = container.unpack(codec.encode(photograph, tiny, 0.0128))
    other = container.Header(header.checkpoint ^ 1, header.lam, header.width, header.height, header.symbol_check)
    with pytest.raises(WeightsError, match="made with the weights"):
        codec.decode(container.pack(other, chunks, payload), tiny)


def test_other_symbols_than_the_encoders_are_noticed(tiny: Checkpoint, photograph: Pixels) -> None:
    header, chunks, payload = container.unpack(codec.encode(photograph, tiny, 0.0128))
    other = container.Header(header.checkpoint, header.lam, header.width, header.height, header.symbol_check ^ 1)
    with pytest.raises(SymbolMismatchError, match="this machine"):
        codec.decode(container.pack(other, chunks, payload), tiny)


def test_a_payload_with_words_added_or_lost_is_refused(tiny: Checkpoint, photograph: Pixels) -> None:
    header, chunks, payload = container.unpack(codec.encode(photograph, tiny, 0.0128))
    for wrong in (payload + bytes(4), payload[:-4], payload[:8], payload + b"abcd"):
        with pytest.raises(CorruptError):
            codec.decode(container.pack(header, chunks, wrong), tiny)


def test_every_flipped_byte_is_one_of_our_errors(tiny: Checkpoint, photograph: Pixels) -> None:
    data = codec.encode(photograph[:16, :16], tiny, 0.0512)
    for i in range(len(data)):
        broken = bytearray(data)
        broken[i] ^= 0x10
        with pytest.raises(CdcodecError):
            codec.decode(bytes(broken), tiny, steps=0)
