"""Self-ensembling co-training as docs/methods.md has it, for a single foreground class with probabilities p."""

import numpy as np

from tests.reference.cross_pseudo import pseudo_label, segmentation_loss


def loss(f_1, f_2, past_1, past_2, x_l, y_l, x_u, tau: float, pseudo_weight: float, consistency_weight: float) -> float:
    """Four functions image → probabilities: the two networks and what each has become on average."""
    total = 0.0
    for f, other, past in ((f_1, f_2, past_1), (f_2, f_1, past_2)):
        total += segmentation_loss(f(x_l), y_l)
        total += pseudo_weight * segmentation_loss(f(x_u), pseudo_label(other(x_u), tau))
        p, remembered = f(x_u), past(x_u)
        total += consistency_weight * sum((p[i] - remembered[i]) ** 2 for i in np.ndindex(*p.shape)) / p.size
    return total
