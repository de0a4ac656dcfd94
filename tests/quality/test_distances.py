"""Moments, the Fréchet distance and KID, against other people's code and closed forms."""

import tracemalloc

import numpy as np
import pytest
import torch

from nnunet_synth.quality import frechet
from nnunet_synth.quality.kernel_distance import kernel_distance
from nnunet_synth.quality.moments import Moments
from tests.reference import frechet as reference


def frechet_distance(*sets):
    """Of moments, as they are gathered."""
    return frechet.frechet_distance(*map(frechet.Gaussian.of, sets))


def moments(features, batch=7):
    gathered = Moments.empty(features.shape[1])
    for start in range(0, len(features), batch):
        gathered.add(features[start:start + batch])
    return gathered


@pytest.fixture
def features():
    """Two sets of 60 and 50 correlated vectors of 6, far from 0."""
    rng = np.random.default_rng(0)
    return tuple(1000 + rng.normal(shift, 1, (n, 6)) @ rng.normal(0, 1, (6, 6)) for n, shift in ((60, 0.0), (50, 0.3)))


def test_moments_are_those_of_numpy(features):
    first, second = features
    for gathered in (moments(first), moments(first, 1), moments(first, 100)):
        np.testing.assert_allclose(gathered.mean, first.mean(0), rtol=1e-13)
        np.testing.assert_allclose(gathered.covariance, np.cov(first, rowvar=False), rtol=1e-9)
        assert gathered.mean_deviation == pytest.approx(first.std(0).mean(), rel=1e-10)
    both = moments(first)
    both.merge(moments(second))
    both.merge(Moments.empty(6))
    np.testing.assert_allclose(both.covariance, np.cov(np.vstack(features), rowvar=False), rtol=1e-9)


def test_moments_of_float32_are_gathered_in_float64():
    """A sum of squares in single precision would lose the variance altogether."""
    values = (10_000 + np.random.default_rng(0).normal(0, 0.01, (5000, 1))).astype(np.float32)
    assert moments(values, 64).mean_deviation == pytest.approx(values.astype(float).std(), rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_images():
    rng = np.random.default_rng(0)

    def peak(number):
        tracemalloc.start()
        gathered = Moments.empty(32)
        for _ in range(number // 50):
            gathered.add(rng.normal(0, 1, (50, 32)))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(100)
    assert peak(10_000) < 1.2 * peak(200)


def test_frechet_distance_is_that_of_scipys_matrix_root(features):
    first, second = features
    expected = reference.frechet_distance(first, second)
    assert expected > 1 and frechet_distance(moments(first), moments(second)) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(moments(second), moments(first)) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_to_itself_is_zero(features):
    first, _ = features
    assert frechet_distance(moments(first), moments(first)) < 1e-9 * np.trace(np.cov(first, rowvar=False))


def test_shifted_gaussians_are_as_far_apart_as_they_were_shifted(features):
    """The closed form ‖Δμ‖² for equal covariances."""
    first, _ = features
    shift = np.array([1.0, -2, 0, 0.5, 0, 3])
    assert frechet_distance(moments(first), moments(first + shift)) == pytest.approx((shift ** 2).sum(), rel=1e-7)


def test_a_scaled_gaussian_differs_by_its_deviations():
    """Closed form for Σ₂ = s² Σ₁ and equal means: (s − 1)² tr Σ₁."""
    first = np.random.default_rng(1).normal(0, 1, (200, 5))
    first -= first.mean(0)
    expected = 0.25 * np.trace(np.cov(first, rowvar=False))
    assert frechet_distance(moments(first), moments(1.5 * first)) == pytest.approx(expected, rel=1e-7)


def test_fewer_images_than_features():
    """The covariances are singular; the distance stays real, and 0 to itself."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (8, 40)), rng.normal(0.5, 2, (9, 40))
    expected = reference.frechet_distance(first, second)
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(moments(first), moments(first)) == pytest.approx(0, abs=1e-5)


def test_kernel_distance_is_the_double_sum(features):
    first, second = (part[:12] - 1000 for part in features)
    assert kernel_distance(first, second) == pytest.approx(reference.kernel_distance(first, second), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """The mean over many small pairs of sets of one distribution is 0; that of the Fréchet distance is not."""
    rng = np.random.default_rng(0)
    pairs = [rng.normal(0, 1, (2, 10, 4)) for _ in range(300)]
    found = np.array([kernel_distance(first, second) for first, second in pairs])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found))
    assert np.mean([frechet_distance(moments(a), moments(b)) for a, b in pairs]) > 0.5


class Flat(torch.nn.Module):
    """The 12 values of a picture [N, 3, 2, 2] as features, for torchmetrics."""

    num_features = 12

    def forward(self, pictures):
        return pictures.flatten(1).double()


def test_torchmetrics_finds_the_same():
    fid_module, kid_module = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(shift, 1, (40, 3, 2, 2))) for shift in (0, 0.4))
    fid = fid_module.FrechetInceptionDistance(Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    kid = kid_module.KernelInceptionDistance(Flat(), subsets=1, subset_size=40)
    for metric in (fid, kid):
        metric.update(first, real=True)
        metric.update(second, real=False)
    ours = [part.flatten(1).numpy() for part in (first, second)]
    assert frechet_distance(*map(moments, ours)) == pytest.approx(fid.compute().item(), rel=1e-5)
    assert kernel_distance(*ours) == pytest.approx(kid.compute()[0].item(), rel=1e-5)
