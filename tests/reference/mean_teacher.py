"""Mean teacher (Tarvainen and Valpola 2017) and UA-MT (Yu et al. 2019), Eq. 1–3, one pixel after another."""

import math

import numpy as np


def moving_average(weights: list[float], alpha: float) -> float:
    """θ′ after all of θ_1, θ_2, …: each with its closed-form share, the first ones equally."""
    shares: list[float] = []
    for t in range(1, len(weights) + 1):
        alpha_t = min(1 - 1 / t, alpha)
        shares = [share * alpha_t for share in shares] + [1 - alpha_t]
    assert math.isclose(sum(shares), 1)
    return sum(share * weight for share, weight in zip(shares, weights, strict=True))


def uncertainty(passes: np.ndarray) -> np.ndarray:
    """Eq. 2: u = −Σ_c μ_c log μ_c, μ the mean of T predictions [T, N, C, …]; [N, …]."""
    num_passes, num_samples, num_classes, *size = passes.shape
    u = np.zeros((num_samples, *size))
    for index in np.ndindex(*u.shape):
        sample, *pixel = index
        for c in range(num_classes):
            mean = sum(passes[(t, sample, c, *pixel)] for t in range(num_passes)) / num_passes
            u[index] -= mean * math.log(mean)
    return u


def consistency(f_t: np.ndarray, f_s: np.ndarray, certain: np.ndarray) -> float:
    """Eq. 3: Σ_v 1(u_v < H) ‖f′_v − f_v‖² / Σ_v 1(u_v < H), the norm averaged over the classes; 0 without any v."""
    total, count = 0.0, 0
    for index in np.ndindex(*certain.shape):
        sample, *pixel = index
        if certain[index]:
            count += 1
            total += sum((f_t[(sample, c, *pixel)] - f_s[(sample, c, *pixel)]) ** 2
                         for c in range(f_t.shape[1])) / f_t.shape[1]
    return total / max(count, 1)


def ramp(t: float, t_max: float) -> float:
    return math.exp(-5 * (1 - t / t_max) ** 2)
