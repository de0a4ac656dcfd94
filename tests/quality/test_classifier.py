"""Networks trained on the spot."""

import numpy as np
import pytest
import torch

from nnunet_synth.errors import UserError
from nnunet_synth.quality.classifier import ClassifierOptions, Example, _augment, _balanced, _split, train_classifier
from nnunet_synth.quality.window import Window
from tests.quality.sets import image_set

WINDOW = Window(0.0, 1.0)


@pytest.fixture
def sets():
    """Coarse stripes and fine ones, of random phase and brightness, two images a case."""
    rng = np.random.default_rng(0)
    column = np.arange(32)
    made = []
    for name, period in (("coarse", 16), ("fine", 5)):
        images = [0.5 + rng.uniform(0.2, 0.4) * np.sin(2 * np.pi * (column / period + rng.random()))
                  * np.ones((32, 1)) for _ in range(20)]
        made.append(image_set(name, np.stack(images), cases=[f"{name}_{number // 2}" for number in range(20)]))
    return made


def examples(sets):
    return [Example(one, index, target, case) for target, one in enumerate(sets)
            for index, case in enumerate(one.cases)]


def test_it_learns_to_tell_classes_apart(sets):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    options = ClassifierOptions("resnet18", steps=60, batch_size=8, resolution=32)
    trained = train_classifier("stripes", "stripes", examples(sets), ["coarse", "fine"], WINDOW, options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trained.accuracy == 1 and len(trained.losses) == 60
    assert np.mean(trained.losses[-5:]) < 0.3 * np.mean(trained.losses[:3])
    assert trained.extractor.description == "resnet18 trained on stripes (coarse, fine), 60 steps at 32²"
    features = trained.extractor(sets[0].images[:3], 32)
    assert features.shape == (3, 512) and not trained.extractor.network.training
    # One image's features do not depend on its companions.
    np.testing.assert_allclose(trained.extractor(sets[0].images[:1], 32), features[:1], rtol=1e-4, atol=1e-5)


def test_the_same_seed_trains_the_same_network(sets):
    first, again, other = (train_classifier("stripes", "stripes", examples(sets), ["coarse", "fine"], WINDOW,
                                            ClassifierOptions("resnet18", 2, 4, 32, seed)).losses for seed in (0, 0, 1))
    assert first == again != other


def test_inception_is_the_papers(sets):
    options = ClassifierOptions("inception_v3", steps=1, batch_size=2, resolution=75)
    trained = train_classifier("stripes", "stripes", examples(sets)[:4] + examples(sets)[-4:], ["coarse", "fine"],
                               WINDOW, options)
    assert trained.extractor(sets[0].images[:2], 75).shape == (2, 2048)


def test_whole_cases_are_held_out(sets):
    training, held_out = _split(examples(sets), np.random.default_rng(0))
    assert len(training) + len(held_out) == 40 and len(held_out) == 8
    assert not {example.case for example in training} & {example.case for example in held_out}
    assert {example.target for example in held_out} == {0, 1}
    alone = [Example(sets[0], index, target, f"case {target}") for index, target in enumerate([0, 0, 1, 1])]
    assert _split(alone, np.random.default_rng(0)) == (alone, [])


def test_every_class_comes_equally_often(sets):
    uneven = examples(sets)[:25]                # 20 of the first, 5 of the second
    rng = np.random.default_rng(0)
    drawn = [example.target for _ in range(20) for example in _balanced(uneven, 8, rng)]
    assert drawn.count(0) == drawn.count(1)
    odd = [example.target for _ in range(100) for example in _balanced(uneven, 3, rng)]
    assert 120 < odd.count(1) < 180


def test_augmentation_moves_and_blurs_nothing_out_of_range():
    images = torch.full((6, 1, 64, 64), -1.0)
    images[:, :, 28:36, 28:36] = 1
    moved = _augment(images, torch.Generator().manual_seed(0))
    places = [(image[0] > 0).nonzero().double().mean(0) for image in moved]
    assert all((place - 31.5).norm() < 0.15 * 64 for place in places)       # shift, and magnified shift
    assert max((a - b).norm() for a in places for b in places) > 3
    areas = [(image > 0).sum().item() for image in moved]
    assert min(areas) > 0.9 * 64 and max(areas) < 1.25 ** 2 * 64 * 1.25
    corners = moved[:, :, :4, :4]
    assert corners.std() > 0 and (corners + 1).abs().mean() < 0.05          # noise on black, nothing gray moved in
    assert torch.equal(moved, _augment(images, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("settings, words", [({"network": "alexnet"}, "alexnet is unknown; known: inception_v3"),
                                             ({"resolution": 64}, "inception_v3 needs 75"),
                                             ({"steps": 0}, "--classifier-steps 0")])
def test_mistakes_get_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        ClassifierOptions(**settings)
