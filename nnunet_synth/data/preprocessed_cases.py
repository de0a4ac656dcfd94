"""nnU-Net's reader of a folder of preprocessed cases."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset

from nnunet_synth.errors import UserError

ENDINGS = (".b2nd", ".npz", ".npy", ".pkl")     # of the files that nnU-Net writes there


def dataset_class(folder: Path) -> type[nnUNetBaseDataset]:
    """The class that reads the cases of this folder; nnU-Net tells it from the endings of all files.

    Raises:
        UserError: no case is there, or what is not nnU-Net's.
    """
    try:
        return infer_dataset_class(str(folder))
    except (AssertionError, KeyError, FileNotFoundError) as error:
        foreign = sorted(path.name for path in folder.glob("*") if path.is_file() and path.suffix not in ENDINGS)
        if foreign:
            raise UserError(f"{folder} holds files that are not nnU-Net's, which then reads none of it: remove "
                            f"{', '.join(foreign[:5])}") from error
        raise UserError(f"{folder} holds no preprocessed case, or those of two versions of nnU-Net: run "
                        "nnUNetv2_preprocess (for …_unlabelled: nnunet_synth preprocess --force)") from error
