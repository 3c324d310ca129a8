"""FID and KID against closed forms for Gaussian features; patches as the protocol has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdcodec.errors import WeightsError
from cdcodec.lab import fid

SIZE, DIMENSIONS = 20_000, 5


@pytest.fixture(scope="module")
def gaussians():
    """Two seeded Gaussians of feature vectors: (mean, covariance, draws float32 (N, D)) each."""
    random = np.random.RandomState(0)
    found = []
    for shift in (0.0, 1.0):
        root = random.normal(0, 0.25, (DIMENSIONS, DIMENSIONS)) + np.eye(DIMENSIONS) / 2
        mean = random.normal(shift, 0.3, DIMENSIONS)
        draws = mean + random.standard_normal((SIZE, DIMENSIONS)) @ root.T
        found.append((mean, root @ root.T, draws.astype(np.float32)))
    return found


def frechet(one, two):
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁^½·Σ₂·Σ₁^½)^½)."""
    (mean_1, cov_1, _), (mean_2, cov_2, _) = one, two
    values, vectors = np.linalg.eigh(cov_1)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_2 @ root)).sum()
    return np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1) + np.trace(cov_2) - 2 * cross


def kernel_mean(one, two):
    """E (x·y/D + 1)³ of independent x, y, from the moments of x·y up to the third."""
    (a, s, _), (b, t, _) = one, two
    first = a @ b
    second = np.sum((s + np.outer(a, a)) * (t + np.outer(b, b)))
    third = (first**3 + 3 * first * (a @ t @ a) + 3 * first * (b @ s @ b)
             + 3 * np.trace(s @ t) * first + 6 * (a @ t @ s @ b))  # fmt: skip
    d = DIMENSIONS
    return third / d**3 + 3 * second / d**2 + 3 * first / d + 1


def test_fid_of_gaussians(gaussians):
    one, two = gaussians
    assert fid.fid(one[2], two[2]) == pytest.approx(frechet(one, two), rel=0.03)
    assert fid.fid(one[2], one[2]) == pytest.approx(0, abs=1e-6)
    shifted = one[2] + np.float32(0.5)
    assert fid.fid(one[2], shifted) == pytest.approx(DIMENSIONS * 0.25, rel=1e-4)


def test_kid_of_gaussians(gaussians):
    one, two = gaussians
    expected = kernel_mean(one, one) + kernel_mean(two, two) - 2 * kernel_mean(one, two)
    parts = [fid.kid(one[2][i : i + 250], two[2][i : i + 250]) for i in range(0, 5000, 250)]
    assert np.mean(parts) == pytest.approx(expected, rel=0.05)
    assert abs(fid.kid(one[2][:200], one[2][200:400])) < 0.1 * expected


def test_kid_is_seeded_and_takes_few_vectors(gaussians):
    one, two = (draws[:40] for _, _, draws in gaussians)
    assert fid.kid(one, two) == fid.kid(one, two)


def test_patches_lie_on_two_grids():
    rows, columns = np.mgrid[0:600, 0:800]
    pixels = np.stack([rows // 4, columns // 4, rows * 0], axis=2).astype(np.uint8)
    corners = [(int(p[0, 0, 0]) * 4, int(p[0, 0, 1]) * 4) for p in fid.patches(pixels)]
    assert corners == [(0, 0), (0, 256), (0, 512), (256, 0), (256, 256), (256, 512), (128, 128), (128, 384)]


@pytest.mark.parametrize("shape", [(255, 900, 3), (100, 100, 3)])
def test_small_pictures_have_no_patches(shape):
    assert fid.patches(np.zeros(shape, np.uint8)).shape == (0, 256, 256, 3)
    assert fid.features(lambda x: x, np.zeros(shape, np.uint8)).shape == (0, 0)


def test_features_come_in_batches():
    sizes = []

    def extractor(x):
        """A stand-in for Inception: seeded projections of the mean colour."""
        sizes.append(len(x))
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 256, 256)
        return x.float().mean(dim=(2, 3)) @ torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    pixels = np.random.RandomState(0).randint(0, 256, (768, 768, 3)).astype(np.uint8)
    features = fid.features(extractor, pixels, batch=4)
    assert sizes == [4, 4, 4, 1]
    assert features.dtype == np.float32
    again = np.stack([fid.features(extractor, patch)[0] for patch in fid.patches(pixels)])
    np.testing.assert_allclose(features, again, rtol=1e-5)


def test_inception_that_is_missing_or_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(WeightsError, match=f"{fid.INCEPTION} is missing"):
        fid.load_inception(tmp_path, "cpu")
    torch.save({"some": torch.zeros(1)}, tmp_path / fid.INCEPTION)
    with pytest.raises(WeightsError, match="does not hold Inception-v3"):
        fid.load_inception(tmp_path, "cpu")
