"""The contract suite: our synthesizers pass it, and each broken promise fails it with its own sentence."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_synth.synthesizers.sean import SEAN
from nnunet_synth.testing import check_synthesizer
from tests.synthesizers.toy import ToyStage, ToySynthesizer


@pytest.mark.parametrize("num_channels", [1, 2])
def test_sean(num_channels):
    check_synthesizer(SEAN, num_channels=num_channels)


def test_toy():
    check_synthesizer(ToySynthesizer)


# ----------------------------------------------------------------------------------------------------------------------
# Broken on purpose


class GlobalNoise(ToySynthesizer):
    def _decode(self, request):
        return self(request.semantic, None)


class FixedNoise(ToySynthesizer):
    def _decode(self, request):
        return self(request.semantic, torch.Generator().manual_seed(0))


class TooBright(ToySynthesizer):
    def _decode(self, request):
        return 1.5 * torch.sign(super()._decode(request))


class IgnoresItsLabel(ToySynthesizer):
    def _decode(self, request):
        return self(torch.zeros_like(request.semantic), request.generator)


class InTrainMode(ToySynthesizer):
    """Its batch norm uses the statistics of the batch."""

    def _decode(self, request):
        self.body[1].track_running_stats = False
        self.body[1].running_mean = self.body[1].running_var = None
        return super()._decode(request)


class MovesItsBuffers(ToySynthesizer):
    def _decode(self, request):
        self.body[1].num_batches_tracked += 1
        return super()._decode(request)


class WritesIntoTheRequest(ToySynthesizer):
    def to_unit(self, image):
        return super().to_unit(image.clamp_(-0.5, 0.5))


class SameBufferEachTime(ToySynthesizer):
    """What a CUDA graph does when its output is not cloned."""

    def synthesize(self, request):
        result = super().synthesize(request)
        if getattr(self, "kept", None) is None or self.kept.shape != result.image.shape:
            self.kept = torch.empty_like(result.image)
        return replace(result, image=self.kept.copy_(result.image))


class ForgetsAWeight(ToySynthesizer):
    def load_exported(self, state):
        super().load_exported(state)
        with torch.no_grad():
            self.head.bias.add_(0.1)


class ReadsItsWeightsInMemoryOrder(ToySynthesizer):
    def _decode(self, request):
        weight = self.body[0].weight
        in_order = weight.as_strided(weight.shape, torch.empty(weight.shape).stride())
        return torch.func.functional_call(self, {"body.0.weight": in_order}, (request.semantic, request.generator))


class LosesDigitsInHalfPrecision(ToySynthesizer):
    def _decode(self, request):
        return super()._decode(request) + 100 - 100


class NaNInHalfPrecision(ToySynthesizer):
    def _decode(self, request):
        image = super()._decode(request)
        return image if image.dtype == torch.float32 else image / 0


class NaNInOddSizes(ToySynthesizer):
    def _decode(self, request):
        return super()._decode(request) * (float("nan") if request.label.shape[1] != request.label.shape[2] else 1)


class NoGradient(ToySynthesizer):
    def stages(self, steps=None, perceptual=None):
        class Blind(ToyStage):
            def generator_loss(self, batch):
                batch["fake"] = batch["real"]
                return sum(p.sum() * 0 for p in self.generator.parameters()), {}
        return [Blind(self, "blind", 2)]


class LeaksIntoTheGenerator(ToySynthesizer):
    def stages(self, steps=None, perceptual=None):
        class Leaky(ToyStage):
            def discriminator_loss(self, batch):
                return F.relu(1 - self._judge(self.synthesizer(batch["semantic"]), batch)).mean(), {}
        return [Leaky(self, "leaky", 2)]


class TrainsFrozenParts(ToySynthesizer):
    def stages(self, steps=None, perceptual=None):
        class Greedy(ToyStage):
            def generator_loss(self, batch):
                self.synthesizer.scale.requires_grad_(True)
                return super().generator_loss(batch)
        return [Greedy(self, "greedy", 2)]


class SamplesAtRandom(ToySynthesizer):
    def stages(self, steps=None, perceptual=None):
        class Careless(ToyStage):
            def sample(self, slices, rng):
                batch = super().sample(slices, rng)
                return {**batch, "real": batch["real"] + torch.rand(())}
        return [Careless(self, "careless", 2)]


class SaysNotDrawable(ToySynthesizer):
    def _is_drawable(self, request):
        return torch.zeros(len(request.label), dtype=torch.bool)


class NeedsNonsense(ToySynthesizer):
    @property
    def needs(self):
        return frozenset({"label"})


BROKEN = {
    GlobalNoise: "same seed|global random",
    FixedNoise: "two seeds drew the same",
    TooBright: "leaves the intensity range",
    IgnoresItsLabel: "does not depend on the label",
    InTrainMode: "companions in the batch",
    MovesItsBuffers: "changed the buffer body.1.num_batches_tracked",
    WritesIntoTheRequest: "wrote into the request's image",
    SameBufferEachTime: "overwrote the image of the last",
    ForgetsAWeight: "draws other images",
    ReadsItsWeightsInMemoryOrder: "in channels_last it draws other images",
    LosesDigitsInHalfPrecision: "in bfloat16 its images are off",
    NaNInHalfPrecision: "in bfloat16 the image holds NaN or Inf",
    NaNInOddSizes: "NaN or Inf",
    NoGradient: "no gradient reaches",
    LeaksIntoTheGenerator: "sends gradients into the generator",
    TrainsFrozenParts: "gradients reach frozen parameters",
    SamplesAtRandom: "something else than the rng",
    SaysNotDrawable: "not drawable",
    NeedsNonsense: "needs names 'label'",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_promise_is_found(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_synthesizer(broken)


def test_the_callers_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    check_synthesizer(ToySynthesizer)
    assert torch.equal(before, torch.get_rng_state())


def test_toys_are_modules():       # the classes above override what they mean to override
    assert all(issubclass(broken, nn.Module) and broken is not ToySynthesizer for broken in BROKEN)
