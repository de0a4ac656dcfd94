#!/usr/bin/env bash
# The guess: the 95th percentile Hausdorff distance ("HD95") of two masks is one number, whoever computes it, up to a
#   fraction of a voxel.
# What happens: medpy throws the distances from A to B and from B to A together and takes the 95th percentile of the
#   whole heap; surface-distance (DeepMind's) takes the percentile of each direction and reports the larger. A false
#   lesion that is 7 % of the prediction's surface is below 4 % of the heap: medpy says 0 mm, a perfect match, and
#   surface-distance says 16 mm, for the same two masks. The plain maximum is the same in both.
# Why users care: HD95 tables of two papers, or of a paper and its re-implementation, are compared to a tenth of a
#   millimetre. A method that invents lesions looks better by 16 mm in one of the two libraries.
# Seen:
#   medpy 0.5.2, surface-distance 0.1, scipy 1.17.1, numpy 2.4.6
#   an organ of 30^3 mm, found exactly, and a false lesion of
#      5^3 mm: HD95 by medpy  0.0 mm, by surface-distance  0.0 mm, maximum 17.3 and 17.3 mm
#      9^3 mm: HD95 by medpy  0.0 mm, by surface-distance 16.1 mm, maximum 24.2 and 24.2 mm
#     12^3 mm: HD95 by medpy 18.0 mm, by surface-distance 22.1 mm, maximum 29.4 and 29.4 mm
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check MedPy==0.5.2 surface-distance==0.1 scipy==1.17.1 numpy==2.4.6 \
  SimpleITK==2.5.7
venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import surface_distance
from medpy.metric.binary import hd, hd95

print(*(f"{p} {version(p)}" for p in ("medpy", "surface-distance", "scipy", "numpy")), sep=", ")
organ = np.zeros((60, 60, 60), bool)
organ[10:40, 10:40, 10:40] = True
measured = {}
print("an organ of 30^3 mm, found exactly, and a false lesion of")
for edge in (5, 9, 12):
    prediction = organ.copy()
    prediction[45 : 45 + edge, 45 : 45 + edge, 45 : 45 + edge] = True
    distances = surface_distance.compute_surface_distances(organ, prediction, (1, 1, 1))
    largest = [float(hd(prediction, organ)), float(surface_distance.compute_robust_hausdorff(distances, 100))]
    ninety_five = [float(hd95(prediction, organ)), float(surface_distance.compute_robust_hausdorff(distances, 95))]
    measured[edge] = [round(d, 1) for d in ninety_five + largest]
    by_medpy, by_surface_distance, *maxima = measured[edge]
    print(
        f"  {edge:2}^3 mm: HD95 by medpy {by_medpy:4} mm, by surface-distance {by_surface_distance:4} mm, "
        f"maximum {maxima[0]} and {maxima[1]} mm"
    )
sys.exit(0 if measured[9] == [0.0, 16.1, 24.2, 24.2] else "the behaviour has changed")
PY
