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
from cdcodec.symbols import Symbols

CONFIG = PRESETS["tiny-x"]


@pytest.fixture(scope="module", params=[3, 1], ids="kernel {}".format)
def floats(request: pytest.FixtureRequest) -> HyperSynthesis:
    torch.manual_seed(3)
    made = HyperSynthesis(dataclasses.replace(CONFIG, hyper_kernel=request.param)).requires_grad_(False)
    for refinement in made.refinements:
        for layer in (refinement.around, refinement.out):
            layer.weight.normal_(0, 0.1)  # which training begins at zero
    return made


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
    raw, mean_before = np.split(convolve(h, twin.layers[-1])[:, :18, :27], 2)
    y = np.random.default_rng(6).integers(-9, 10, raw.shape, dtype=np.int32)
    ours = twin(z[0], (18, 27), lambda places, *_: y.ravel()[places])
    features = h[:, :18, :27]
    index, mean = (np.zeros(y.shape, np.int64) for _ in range(2))
    for i, stage in enumerate(twin.stages):
        own_raw, own_mean = raw[stage.part], mean_before[stage.part]
        if i:
            part, known = twin.refinements[i - 1], y[: stage.known].clip(-7, 7).astype(np.int64)
            known[ours.stage[: stage.known] >= i] = 0
            inner = convolve(np.concatenate((abs(known), known)), part.told) + convolve(features, part.given)
            inner += convolve(inner.clip(0, integer.ACTIVATION_LIMIT), part.around)
            more = convolve(inner.clip(0, integer.ACTIVATION_LIMIT), part.out)
            own_raw, own_mean = (a + b for a, b in zip((own_raw, own_mean), np.split(more, 2), strict=True))
        now = ours.stage[stage.part] == i
        index[stage.part][now] = np.searchsorted(twin.thresholds.numpy(), own_raw, side="right")[now]
        mean[stage.part][now] = own_mean[now]
    assert np.array_equal(y, ours.y)
    assert np.array_equal(index, ours.index)
    assert np.array_equal(mean, ours.mean)


def test_every_element_is_in_one_stage_and_told_only_what_is_before_it(twin: IntegerHyperSynthesis) -> None:
    seen = np.zeros((CONFIG.latent, 5, 6), np.int64)
    for stage in twin.stages:
        assert not seen[stage.known :].any()
        seen[stage.part] += stage.places(5, 6).numpy()
    assert (seen == 1).all()
    assert len(twin.stages) == sum(CONFIG.phases) == 7


def some(twin: IntegerHyperSynthesis, z: NDArray[np.int32], size: tuple[int, int]) -> Symbols:
    """Symbols of z and of a y that is the same for every call."""
    y = np.random.default_rng(6).integers(-9, 10, (CONFIG.latent, *size), dtype=np.int32)
    return twin(z, size, lambda places, *_: y.ravel()[places])


def test_threads_batch_and_strips_change_nothing(
    twin: IntegerHyperSynthesis, z: NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = twin.parameters(z, (20, 28))
    before = some(twin, z[0], (20, 28))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for i in (0, 1):
                for one, both in zip(twin.parameters(z[i : i + 1], (20, 28)), together, strict=True):
                    assert torch.equal(one[0], both[i])
            assert some(twin, z[0], (20, 28)).check(8) == before.check(8)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(integer, "STRIP_ELEMENTS", 1)
    assert torch.equal(twin.parameters(z, (20, 28))[1], together[1])
    assert np.array_equal(some(twin, z[0], (20, 28)).index, before.index)


def test_the_tensors_hold_all_of_it(twin: IntegerHyperSynthesis, z: NDArray[np.int32]) -> None:
    again = IntegerHyperSynthesis.from_tensors(twin.tensors(), CONFIG)
    ours, theirs = some(twin, z[0], (19, 25)), some(again, z[0], (19, 25))
    assert np.array_equal(ours.index, theirs.index)
    assert np.array_equal(ours.mean, theirs.mean)
    without = {name: value for name, value in twin.tensors().items() if "stage1.out" not in name}
    with pytest.raises(KeyError, match=r"stage1\.out"):
        IntegerHyperSynthesis.from_tensors(without, CONFIG)
    with pytest.raises(ValueError, match="of a stage do not fit"):
        IntegerHyperSynthesis.from_tensors(twin.tensors(), dataclasses.replace(CONFIG, groups=(3, 8)))


def test_it_stays_close_to_the_floats(
    twin: IntegerHyperSynthesis, floats: HyperSynthesis, z: NDArray[np.int32]
) -> None:
    """The floats, given the ŷ of the integers, find its very symbols: all stages are told the same."""
    coded = some(twin, z[0], (18, 27))
    y = torch.from_numpy(coded.latent(CONFIG.fraction_bits))[None] / 2.0**CONFIG.fraction_bits
    log_scale, mean = floats(torch.from_numpy(z[:1]).float(), y.float())
    assert np.abs(coded.mean / 256 - mean.numpy()).max() < 0.02
    step = math.log(2560) / 255
    expected = (log_scale.numpy() - math.log(0.1)) / step
    assert np.abs(coded.index - expected).max() < 0.5 + 0.2
    assert len(np.unique(coded.index)) > 10
    later = floats(torch.from_numpy(z[:1]).float(), y.float() + (torch.from_numpy(coded.stage) == 6))
    assert torch.equal(later[1], mean)  # the last stage tells nobody


def test_layers_that_could_lose_exactness_are_refused() -> None:
    weight = torch.full((1, 600, 3, 3), 2**14, dtype=torch.int16)
    bias, shift = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.uint8)
    assert IntegerLayer(weight[:, :300], bias, shift).weight.shape[1] == 300
    with pytest.raises(ValueError, match="exact"):
        IntegerLayer(weight, bias + 2**52, shift)
    with pytest.raises(ValueError, match="exact"):
        IntegerLayer(weight.repeat(1, 4, 1, 1), bias, shift)
    with pytest.raises(ValueError, match="exact"):
        IntegerLayer(weight, bias, shift * 0)
    with pytest.raises(ValueError, match="shapes"):
        IntegerLayer(weight[:, :, :2, :2], bias, shift)
    with pytest.raises(ValueError, match="int16"):
        IntegerLayer(weight.float(), bias, shift)


def test_float64_convolution_is_exact_at_the_limit_of_the_sums() -> None:
    channels = 2**52 // (9 * integer.ACTIVATION_LIMIT * integer.WEIGHT_LIMIT)
    x = torch.full((1, channels, 4, 4), integer.ACTIVATION_LIMIT)
    w = torch.full((4, channels, 3, 3), integer.WEIGHT_LIMIT)
    w[1, ::2] *= -1
    w[2] *= -1
    w[3, channels // 2 :] -= 1
    floats = F.conv2d(x.double(), w.double())
    windows = np.lib.stride_tricks.sliding_window_view(x[0].numpy(), (3, 3), axis=(1, 2))
    assert np.array_equal(floats[0].numpy(), np.einsum("chwij,ocij->ohw", windows, w.numpy()))
