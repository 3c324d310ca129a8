"""The search over λ: real sizes within the target, few files, and a clear line where it is out of reach."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cdcodec import codec, target
from cdcodec.bits import container
from cdcodec.config import LADDER
from cdcodec.errors import TargetError
from cdcodec.target import Target


class Coder:
    """Pretends to code: log payload falls along log λ with a bend, and wobbles a little; counts its calls."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.level = random.uniform(math.log(3000), math.log(300_000))
        self.slope = -random.uniform(0.35, 0.95)
        self.bend = random.uniform(-0.06, 0.06)
        self.phase = random.uniform(0, 6)
        self.calls: list[float] = []

    def size(self, lam: float) -> int:
        s = math.log(lam / 0.0128)
        wobble = 0.002 * math.sin(9 * s + self.phase)
        return 28 + 4 * round(math.exp(self.level + self.slope * s + self.bend * s * s + wobble) / 4)

    def __call__(self, lam: float) -> bytes:
        assert LADDER[0] <= lam <= LADDER[-1]
        self.calls.append(lam)
        return bytes(self.size(lam))


@pytest.mark.parametrize("typical", [None, {0.0024: 0.9, 0.0128: 0.35, 0.0768: 0.1}, {0.0024: 1.0, 0.0768: 1.0}])
def test_sizes_are_met_from_below(typical):
    near = 0
    for seed in range(300):
        coder = Coder(seed)
        least, most = coder.size(LADDER[-1]), coder.size(LADDER[0])
        limit = int(math.exp(np.random.default_rng([seed, 1]).uniform(math.log(least * 1.01), math.log(most))))
        hit = target.to_size(coder, limit, LADDER, area=400_000, typical=typical)
        assert len(hit.data) <= limit
        assert len(hit.data) == coder.size(hit.lam)
        assert len(coder.calls) == hit.encodes <= 4
        near += len(hit.data) >= 0.97 * limit
    assert near >= 0.97 * 300


def test_sizes_out_of_reach():
    coder = Coder(0)
    least = coder.size(LADDER[-1])
    with pytest.raises(TargetError, match=rf"has {least}, at λ = 0\.0768"):
        target.to_size(coder, least - 1, LADDER)
    assert len(coder.calls) <= 4
    with pytest.raises(TargetError, match="28 bytes is out of reach"):
        target.to_size(coder, 28, LADDER)
    hit = target.to_size(coder, least, LADDER)
    assert (len(hit.data), hit.notes) == (least, ())


def test_more_bytes_than_can_be_used():
    coder = Coder(1)
    most = coder.size(LADDER[0])
    hit = target.to_size(coder, 3 * most, LADDER)
    assert (len(hit.data), hit.lam) == (most, LADDER[0])
    assert hit.notes == (f"the best these weights can do, λ = 0.0024, takes less than the {3 * most} bytes allowed",)


def test_one_rung_only():
    coder = Coder(2)
    size = coder.size(0.0128)
    assert len(target.to_size(coder, size + 40, (0.0128,)).data) == size
    with pytest.raises(TargetError):
        target.to_size(coder, size - 1, (0.0128,))


def test_any_curve_keeps_the_limit():
    random = np.random.default_rng(5)
    for _ in range(200):
        sizes = random.integers(100, 10_000, 8)

        def code(lam: float, sizes: np.ndarray = sizes) -> bytes:
            return bytes(int(np.interp(math.log(lam), np.log(LADDER), sizes)))

        limit = int(random.integers(100, 10_000))
        try:
            hit = target.to_size(code, limit, LADDER)
        except TargetError:
            continue
        assert len(hit.data) <= limit
        assert hit.encodes <= 5


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_out_of_reach_that_the_ladder_holds(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.sort(random.integers(100, 10_000, 8))[::-1]

    def code(lam: float) -> bytes:
        return bytes(max(29, int(np.interp(math.log(lam), np.log(LADDER), sizes) * random.uniform(1, 1.5))))

    assert len(target.to_size(code, int(1.5 * sizes[-1]) + 1, LADDER).data) <= 1.5 * sizes[-1] + 1


@pytest.mark.parametrize(("kind", "value"), [("lpips", 0.2), ("ssim", 0.9), ("size", 0), ("bpp", math.inf)])
def test_targets_that_make_no_sense_are_refused(kind: str, value: float) -> None:
    with pytest.raises(ValueError, match="target"):
        Target(kind, value)


@pytest.mark.parametrize(("kind", "low", "high"), [("psnr", 22, 33), ("lpips", 0.08, 0.45)])
def test_qualities_are_met(kind, low, high):
    for seed in range(100):
        random = np.random.default_rng(seed)
        bend, level, steepness = random.uniform(-0.3, 0.3), random.uniform(-2, 2), random.uniform(0.6, 1.6)

        def quality(lam: float, bend=bend, level=level, steepness=steepness) -> float:
            s = math.log(lam / 0.0128)
            if kind == "psnr":
                return 28 + level - 2.5 * steepness * s + bend * s * s
            return 0.2 * math.exp(0.1 * level + 0.35 * steepness * s + 0.1 * bend * s * s)

        judged = []

        def judge(data: bytes, quality=quality, judged=judged) -> float:
            judged.append(float(data))
            return quality(float(data))

        wished = float(random.uniform(low, high))
        ends = sorted((quality(LADDER[0]), quality(LADDER[-1])))
        goal = Target(kind, wished, measure=target.psnr)  # to_quality has its judge
        reachable = ends[1] >= wished if kind == "psnr" else ends[0] <= wished
        if not reachable:
            with pytest.raises(TargetError, match="out of reach"):
                target.to_quality(lambda lam: str(lam).encode(), judge, goal, LADDER)
            continue
        hit = target.to_quality(lambda lam: str(lam).encode(), judge, goal, LADDER)
        assert hit.measured == quality(hit.lam)
        assert hit.encodes == len(judged) <= 4
        if kind == "psnr":
            assert wished <= hit.measured
            assert hit.measured < wished + 0.3 or hit.lam == LADDER[-1]
        else:
            assert hit.measured <= wished
            assert hit.measured > 0.93 * wished or hit.lam == LADDER[-1]


def test_a_wrong_idea_of_the_curve():
    coder = Coder(4)
    limit = coder.size(0.01)
    for prior in ({0.0024: 1e-9, 0.0768: 1e-10}, {0.0024: 1e9, 0.0768: 1e8}, {0.0024: 1.0, 0.0768: 0.999}):
        assert 0.5 * limit <= len(target.to_size(coder, limit, LADDER, area=10**6, typical=prior).data) <= limit


def test_psnr():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert target.psnr(black, grey) == target.psnr(grey, black) == pytest.approx(20 * math.log10(5))
    assert target.psnr(grey, grey) == 100


# --- with a model


def noisy(seed: int, height: int = 160, width: int = 192) -> np.ndarray:
    """A picture with something in it at every scale, uint8 (height, width, 3)."""
    from PIL import Image

    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (4, 16, 64):
        small = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return (total / 3).astype(np.uint8)


def test_real_files_meet_their_size(tiny):
    near = []
    for seed in range(4):
        pixels, random = noisy(seed), np.random.default_rng(seed)
        chunks = {"icc": bytes(100)} if seed % 2 else {}
        ends = [len(codec.encode(pixels, tiny, lam, chunks)) for lam in (tiny.ladder[-1], tiny.ladder[0])]
        for _ in range(3):
            limit = int(random.uniform(*ends))
            hit = target.encode(pixels, tiny, Target("size", limit), chunks)
            header, kept, _ = container.unpack(hit.data)
            assert (header.lam, kept, header.width) == (hit.lam, chunks, 192)
            assert len(hit.data) <= limit
            assert hit.encodes <= 4
            near.append(len(hit.data) >= 0.97 * limit)
    assert sum(near) >= 0.9 * len(near)


def test_bits_per_pixel_are_those_of_the_whole_file(tiny):
    pixels = noisy(1)
    middle = len(codec.encode(pixels, tiny, 0.0128))
    wished = 8 * middle / (160 * 192)
    hit = target.encode(pixels, tiny, Target("bpp", wished), typical={0.0024: 0.8, 0.0768: 0.1})
    assert 0.97 * middle <= len(hit.data) <= middle


def test_chunks_alone_can_be_too_much(tiny):
    with pytest.raises(TargetError, match=r"take 5032 \(--strip"):
        target.encode(noisy(0), tiny, Target("size", 5000), {"exif": np.random.default_rng(1).bytes(5000)})


def test_psnr_is_measured_as_decoded(tiny, photograph):
    settings = {"steps": 2, "gamma": 0.0, "rho": 0.0}
    values = [
        target.psnr(photograph, codec.decode(codec.encode(photograph, tiny, lam), tiny, **settings)[0])
        for lam in tiny.ladder
    ]
    wished = (min(values) + max(values)) / 2
    hit = target.encode(photograph, tiny, Target("psnr", wished), settings=settings)
    assert hit.measured >= wished
    assert hit.measured == target.psnr(photograph, codec.decode(hit.data, tiny, **settings)[0])
    with pytest.raises(TargetError, match="PSNR 99 is out of reach"):
        target.encode(photograph, tiny, Target("psnr", 99), settings=settings)


def test_another_measure(tiny, photograph):
    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(float) - b).mean()) / 255

    values = [
        error(photograph, codec.decode(codec.encode(photograph, tiny, lam), tiny, steps=0)[0]) for lam in tiny.ladder
    ]
    hit = target.encode(photograph, tiny, Target("lpips", max(values), error), settings={"steps": 0})
    assert hit.measured <= max(values)
