"""Trainers for `nnUNetv2_train … -tr NAME`: thin subclasses of nnU-Net's own."""

from nnunet_synth.trainers.co_training import SelfEnsemblingTrainer
from nnunet_synth.trainers.cross_consistency import CCTTrainer
from nnunet_synth.trainers.cross_pseudo import CPSTrainer, SACPSTrainer
from nnunet_synth.trainers.dual_consistency import UDCTrainer
from nnunet_synth.trainers.mean_teacher import MeanTeacherTrainer, UAMTTrainer
from nnunet_synth.trainers.progressive import SemiInfNetTrainer
from nnunet_synth.trainers.self_training import SASTTrainer, STTrainer
from nnunet_synth.trainers.semi_supervised import SemiSupervisedTrainer
from nnunet_synth.trainers.supervised import SupervisedTrainer
from nnunet_synth.trainers.weak_to_strong import UniMatchTrainer

__all__ = ["CCTTrainer", "CPSTrainer", "MeanTeacherTrainer", "SACPSTrainer", "SASTTrainer", "STTrainer",
           "SelfEnsemblingTrainer", "SemiInfNetTrainer", "SemiSupervisedTrainer", "SupervisedTrainer", "UAMTTrainer",
           "UDCTrainer", "UniMatchTrainer"]
