"""From ground glass to consolidation: a lesion of rising mean intensity, drawn by a trained synthesizer (UM2I, Fig. 6).

    python -m benchmarks.hu_ladder DATASET CONFIG FOLD IMAGE --circle X Y Z RADIUS [--hu -700 -600 -450 -300 -150 0]
                                   [--synthesizer um2i] [--output FILE]

Every rung is one call of `nnunet_synth edit`. The picture shows the edited mask, the drawing and its annotation, one
below the other; the table says which mean HU the drawn disc has, and how much of it the segmentation head sees. Writes
`benchmarks/results/hu_ladder_<device>.json` and the picture beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.record import RESULTS, write_result
from nnunet_synth.commands.edit import edit, find_image, load_model, mark_regions, picture_row
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.raw_images import read_image
from nnunet_synth.editing.lesion_edits import circle_edit
from nnunet_synth.editing.opened_image import OpenedImage
from nnunet_synth.synthesizers.gallery import write_gallery

ENLARGED = 2        # pictures of small slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("fold")
    parser.add_argument("image")
    parser.add_argument("--circle", nargs=4, metavar=("X", "Y", "Z", "RADIUS"), required=True)
    parser.add_argument("--hu", nargs="+", default=["healthy", "-700", "-600", "-450", "-300", "-150", "0"])
    parser.add_argument("--synthesizer", default="um2i")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    experiment = load_experiment(args.dataset, args.configuration, args.fold)
    model = load_model(experiment, args.synthesizer, "head", args.device)
    file, _ = find_image(experiment, args.image)
    rungs, rows = [], []
    for hu in args.hu:
        one = circle_edit([*args.circle, hu])
        inside = mark_regions(experiment, file, [one]) > 0
        with tempfile.TemporaryDirectory() as folder:
            part, = edit(args.dataset, args.configuration, args.fold, args.image, [one], Path(folder) / "edited",
                         synthesizer=args.synthesizer, device=args.device)
            reader = experiment.plans_manager.image_reader_writer_class()
            drawn = read_image([Path(folder) / "edited" / file.name], reader)[0][0]
        opened = OpenedImage.open(experiment, [file], inside.astype(np.int16))
        disc = opened.regions[part.number] > 0
        rungs.append({"wanted_hu": hu, "mean_hu": float(drawn[inside].mean()),
                      "seen_as_lesion": float((part.seen > 0)[disc].mean())})
        print(rungs[-1])
        rows.append([enlarged(picture) for picture in picture_row(model, opened, part, part.seen)[2:]])
    output = args.output or RESULTS / f"hu_ladder_{torch.device(args.device).type}.json"
    write_gallery(zip(*rows, strict=True), args.hu, output.with_suffix(".png"))
    write_result({"dataset": experiment.dataset_name, "image": args.image, "circle": args.circle,
                  "synthesizer": args.synthesizer, "rungs": rungs}, "hu_ladder", torch.device(args.device), output)


def enlarged(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST))


if __name__ == "__main__":
    main()
