"""Somebody's own folder: phantom CTs as NIfTI, NRRD and MetaImage, some with label maps, and a pool beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_synth.data.phantom import PhantomCase, PhantomSettings, draw_case

LABELLED = ("ann.nii.gz", "bob.nrrd", "cem.mha", "dora.mhd", "eve_01.nii")
UNLABELLED = ("more 1.nii.gz", "more 2.mha")
NOT_LABELLED = "fay.nii.gz"             # in SOURCE, without a label map


def write_tree(root: Path, size: int = 64, num_slices: int = 24) -> Path:
    """Write `root/{scans,labels,more}`; the label maps are NIfTI whatever the scans are. Returns `root/scans`."""
    settings = PhantomSettings(size, num_slices, slice_spacing=280 / num_slices)
    for index, name in enumerate((*LABELLED, NOT_LABELLED, *UNLABELLED)):
        case = draw_case(np.random.SeedSequence([7, index]), settings)
        write(case.image, case, root / ("more" if name in UNLABELLED else "scans") / name)
        if name in LABELLED:
            write(case.label, case, root / "labels" / f"{name.split('.')[0]}.nii.gz")
    return root / "scans"


def write(array: np.ndarray, case: PhantomCase, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(case.spacing[::-1])
    image.SetOrigin((-185.0, -170.5, 12.25))
    SimpleITK.WriteImage(image, str(path), useCompression=path.suffix != ".nii")
