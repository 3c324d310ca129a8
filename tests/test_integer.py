"""The integer hyper-synthesis: exact whatever the machine does, and close to the floats it was made from."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cdcodec.bits.tables import nearest_scale_thresholds
from cdcodec.config import PRESETS
from cdcodec.nets import integer
from cdcodec.nets.hyperprior import HyperSynthesis
from cdcodec.nets.integer import IntegerHyperSynthesis, IntegerLayer

CONFIG = PRESETS["tiny-x"]


@pytest.fixture(scope="module", params=[3, 1], ids="kernel {}".format)
def floats(request: pytest.FixtureRequest) -> HyperSynthesis:
    torch.manual_seed(3)
    return HyperSynthesis(dataclasses.replace(CONFIG, hyper_kernel=request.param)).requires_grad_(False)


@pytest.fixture(scope="module")
def twin(floats: HyperSynthesis) -> IntegerHyperSynthesis:
    return IntegerHyperSynthesis.of(floats, nearest_scale_thresholds(), CONFIG)


@pytest.fixture(scope="module")
def z() -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(-30, 31, (2, CONFIG.hyper, 5, 7), dtype=np.int32)


def convolve(x: NDArray[np.int64], layer: IntegerLayer) -> NDArray[np.int64]:
    """SPEC.md section 6 in plain Python integers' arithmetic (int64, no float anywhere)."""
    weight, bias, shift = (t.numpy().astype(np.int64) for t in (layer.weight, layer.bias, layer.shift))
    side = weight.shape[2]
    padded = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    sums = np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]
    return (sums + (1 << (shift - 1))[:, None, None]) >> shift[:, None, None]


def test_it_is_the_specified_integer_arithmetic(twin: IntegerHyperSynthesis, z: NDArray[np.int32]) -> None:
    h = z[0].astype(np.int64)
    for layer in twin.layers[:-1]:
        h = convolve(h, layer).clip(0, integer.ACTIVATION_LIMIT)
        c, height, width = h.shape
        h = h.reshape(c // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2).reshape(c // 4, 2 * height, 2 * width)
    raw, mean = np.split(convolve(h, twin.layers[-1])[:, :18, :27], 2)
    index = np.searchsorted(twin.thresholds.numpy(), raw, side="right")
    ours_index, ours_mean = twin(z[0], (18, 27))
    assert np.array_equal(index, ours_index)
    assert np.array_equal(mean, ours_mean)


def test_threads_batch_and_strips_change_nothing(
    twin: IntegerHyperSynthesis, z: NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, mean = twin(z, (20, 28))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for i in (0, 1):
                one_index, one_mean = twin(z[i], (20, 28))
                assert np.array_equal(one_index, index[i])
                assert np.array_equal(one_mean, mean[i])
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(integer, "STRIP_ELEMENTS", 1)
    assert np.array_equal(twin(z, (20, 28))[1], mean)


def test_the_tensors_hold_all_of_it(twin: IntegerHyperSynthesis, z: NDArray[np.int32]) -> None:
    again = IntegerHyperSynthesis.from_tensors(twin.tensors(), CONFIG)
    for ours, theirs in zip(twin(z, (19, 25)), again(z, (19, 25)), strict=True):
        assert np.array_equal(ours, theirs)


def test_it_stays_close_to_the_floats(
    twin: IntegerHyperSynthesis, floats: HyperSynthesis, z: NDArray[np.int32]
) -> None:
    log_scale, mean = floats(torch.from_numpy(z).float(), (20, 28))
    index, whole = twin(z, (20, 28))
    assert np.abs(whole / 256 - mean.numpy()).max() < 0.01
    step = math.log(2560) / 255
    expected = (log_scale.numpy() - math.log(0.1)) / step
    assert np.abs(index - expected).max() < 0.5 + 0.2
    assert len(np.unique(index)) > 10


def test_the_largest_symbols_saturate_and_stay_exact(twin: IntegerHyperSynthesis) -> None:
    z = np.full((CONFIG.hyper, 2, 2), 2**15 - 1, np.int32)
    for sign in (1, -1):
        index, mean = twin(sign * z, (8, 8))
        assert np.abs(mean).max() <= (2**15 - 1) * 256
        assert index.dtype == np.uint8


def test_layers_that_could_lose_exactness_are_refused() -> None:
    weight = torch.full((1, 600, 3, 3), 2**14, dtype=torch.int16)
    bias, shift = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.uint8)
    assert IntegerLayer(weight[:, :300], bias, shift).weight.shape[1] == 300
    with pytest.raises(ValueError, match="exact"):
        IntegerLayer(weight.repeat(1, 1, 1, 1), bias + 2**52, shift)
    with pytest.raises(ValueError, match="exact"):
        IntegerLayer(weight, bias, shift * 0)
    with pytest.raises(ValueError, match="shapes"):
        IntegerLayer(weight[:, :, :2, :2], bias, shift)
    with pytest.raises(ValueError, match="int16"):
        IntegerLayer(weight.float(), bias, shift)


def test_float64_convolution_is_exact_at_the_limit_of_the_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-integer.ACTIVATION_LIMIT, integer.ACTIVATION_LIMIT, (1, 192, 6, 6), generator=generator)
    w = torch.randint(-integer.WEIGHT_LIMIT, integer.WEIGHT_LIMIT, (4, 192, 3, 3), generator=generator)
    floats = F.conv2d(x.double(), w.double())
    windows = np.lib.stride_tricks.sliding_window_view(x[0].numpy(), (3, 3), axis=(1, 2))
    assert np.array_equal(floats[0].numpy(), np.einsum("chwij,ocij->ohw", windows, w.numpy()))
