"""Semi-Inf-Net, Algorithm 1 (Fan et al. 2020): which cases are in the training set after each step."""


def training_sets(unlabelled: list[str], group_size: int) -> list[list[str]]:
    """The pseudo-labelled part of D_training after 0, 1, 2, … repetitions, for cases drawn in this order."""
    remaining, training = list(unlabelled), []
    sets = [[]]
    while remaining:                                        # until D_unlabelled is empty
        group, remaining = remaining[:group_size], remaining[group_size:]
        training = training + group
        sets.append(training)
    return sets
