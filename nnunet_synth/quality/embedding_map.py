"""Features of all sets in a plane: what a method never draws is an area without its points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MAX_POINTS = 400            # of a set
NUM_COMPONENTS = 50         # that t-SNE starts from
MIN_POINTS = 8              # of all sets together: t-SNE needs neighbours


def embed(features: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """"PCA" and "t-SNE" → set → [n, 2].

    Both are fitted to the features of all sets together, each feature scaled to the deviation 1. t-SNE starts from the
    first principal components; distances between its clusters mean nothing, whether points of two sets mix does.

    Args:
        features: set → [n, D].
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    chosen = {name: vectors[:MAX_POINTS] for name, vectors in features.items()}
    together = np.concatenate(list(chosen.values())).astype(np.float64)
    if len(together) < MIN_POINTS:
        return {}
    deviation = together.std(0)
    together = (together - together.mean(0)) / np.where(deviation > 0, deviation, 1)
    components = PCA(min(NUM_COMPONENTS, *together.shape), random_state=seed, svd_solver="full") \
        .fit_transform(together)
    perplexity = min(30.0, (len(together) - 1) / 3)
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
    ends = np.cumsum([len(vectors) for vectors in chosen.values()])[:-1]
    return {method: dict(zip(chosen, np.split(points, ends), strict=True))
            for method, points in (("PCA", components[:, :2]), ("t-SNE", plane))}
