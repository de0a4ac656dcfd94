"""Training on the labelled cases alone: the lower line of a study, and on a fold with all labels its upper line."""

from __future__ import annotations

from nnunet_synth.config import TrainerConfig
from nnunet_synth.errors import UserError
from nnunet_synth.trainers.configured import ConfiguredTrainer


class SupervisedTrainer(ConfiguredTrainer):
    """Stock nnU-Net's step, with the settings, seeds, labelled loader and checkpoints of all other trainers."""

    @classmethod
    def check_settings(cls, settings: TrainerConfig) -> None:
        super().check_settings(settings)
        if settings.epochs_over_unlabelled is not None:
            raise UserError("epochs_over_unlabelled counts passes over unlabelled scans, which SupervisedTrainer does "
                            "not read: set it to null, and num_epochs and num_iterations_per_epoch to the same budget")

    def train_step(self, batch: dict) -> dict:
        x_l, y_l = self.labelled_to_device(batch)
        self.zero_gradients()
        with self.autocast():
            loss = self.loss(self.network(x_l), y_l)
        self.backward(loss)
        self.update_networks()
        return self.scalars({"loss": loss, "loss_supervised": loss})
