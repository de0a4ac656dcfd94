"""Left and right lung by classical image processing, for CT in HU and for 8-bit pictures of CT slices.

Everything is done on an image in HU whose axes run z → superior, y → posterior, x → the patient's left, slice by slice
where a slice is enough, in pixels of about 1.4 mm:

1. **Calibrate** (pictures only): the window is unknown, so the median of the dark class becomes lung (−850 HU) and
   the commonest value of the bright class becomes soft tissue (40 HU); the lungs span about 260 mm. (Volumes only: a
   body narrower than 250 mm is a child's, and all lengths and areas below shrink with it.)
2. **Body**: the largest piece of tissue with its holes filled, so that room air, blankets and the table, before or
   behind the patient, are out. Lung that is cut open by the edge of the reconstruction is denser than room air, and
   most of its border is body.
3. **Air in the body**: below −300 HU. Windpipe and large bronchi (small, central, darker than lung) and bowel gas
   (as dark as room air, and smaller than a lung or below one) are dropped.
4. **Left and right**: the brightest path from front to back near the midline parts them, through mediastinum and
   junction lines. The midline is the spine's where bone is seen, so that a lung without air does not move it; the
   middle between the lungs' outer borders elsewhere. Which is which follows from the axes, that is from the image's
   geometry; `chest_anatomy.py` tells what contradicts it.
5. **Fill**: closing and filled holes bring vessels back. Consolidation is as bright as muscle, so where it lies at the
   chest wall the shape must help: the rib cage is convex, and what lies between the convex hull of the lungs and their
   aerated part, not deeper than 40 mm from the side or the back, is lung. A large, round, smooth hole is the dome of
   the diaphragm and stays out.

Lung that is consolidated throughout, with no aerated rim, is not found: nothing sets it apart from muscle, nor fluid
from it. Of broad consolidation at the wall, what lies beyond the hull's chord is lost. On the 50 labelled slices of
COVID-SemiSeg 93 % of the infected pixels (mean over the slices; median 99 %, worst 36 %) lie in the lungs found.
Where so small a field of view was reconstructed that a third of a lung's border is missing, it is lost in that slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label as connected_components
from skimage.measure import regionprops
from skimage.morphology import convex_hull_image

from nnunet_synth.data.body_axes import canonical_order, from_canonical, to_canonical
from nnunet_synth.data.chest_anatomy import body_columns, spine_column

LAYOUT_LABELS = {"left_lung": 1, "right_lung": 2}
LUNG_HU, SOFT_TISSUE_HU = -850.0, 40.0
HU_RANGE = (-1024.0, 3071.0)    # padding is darker than air: it would darken the lung beside it
NARROWEST_ADULT_MM = 250.0      # whose body is narrower is a child
LUNGS_WIDTH_MM = 260.0          # of pictures without spacing: both lungs of an adult, side to side
_WORKING_SPACING_MM = 1.4       # in plane; finer images are reduced, the boundary is interpolated back


@dataclass(frozen=True)
class LungThresholds:
    """HU, mm and mm² that decide; the defaults hold for adults."""

    air_hu: float = -300.0              # aerated lung and ground glass below, consolidation and vessels above
    gas_hu: float = -930.0              # room air, windpipe and bowel gas below, lung above
    airway_mm2: float = 900.0           # larger pieces of a slice are no windpipe
    airway_from_midline_mm: float = 45.0
    smallest_piece_mm2: float = 120.0   # of pictures; of volumes: the share below
    smallest_piece: float = 0.02        # of the largest piece's volume
    largest_gas: float = 0.3            # of the largest piece's volume: larger ones are lungs, however dark
    thinnest_wall_mm: float = 2.0       # half of it: thinner tissue is a table's or a blanket's
    outside_mm: float = 3.0             # the blurred rim between room air and skin
    smallest_cut_mm2: float = 2000.0    # of a piece that the edge of the image cuts open
    closing_mm: float = 8.0
    pocket_mm: float = 40.0             # deepest consolidation at the chest wall that is filled
    spine_mm: float = 30.0              # no pockets are filled from the back so near the midline
    dome_mm2: float = 900.0             # a hole larger than this, round, smooth and as dense as liver, is the
    dome_hu: float = -20.0              # diaphragm's dome

    def scaled(self, size: float) -> LungThresholds:
        """For a body `size` times as wide as an adult's: mm and mm² shrink with it."""
        lengths = {name: getattr(self, name) * size for name in
                   ("airway_from_midline_mm", "closing_mm", "pocket_mm", "spine_mm", "thinnest_wall_mm",
                    "outside_mm")}
        areas = {name: getattr(self, name) * size ** 2 for name in
                 ("airway_mm2", "smallest_piece_mm2", "smallest_cut_mm2", "dome_mm2")}
        return replace(self, **lengths, **areas)


def find_lungs(image: np.ndarray, spacing: tuple[float, ...] | None, axes: str, is_hu: bool = True,
               thresholds: LungThresholds = LungThresholds()) -> np.ndarray:            # noqa: B008 (frozen)
    """Find left and right lung.

    Args:
        image: [z, y, x] or [y, x]; HU, or gray values of an unknown window (`is_hu=False`, slices only).
        spacing: mm along each axis of `image`; None = unknown.
        axes: the direction in which each index grows, of L R A P S I: "SPL" for a volume, "PL" for a slice as
            radiologists display it (rows to posterior, columns to the patient's left).

    Returns:
        uint8 map of the shape of `image`: 0 none, 1 left lung, 2 right lung.

    Raises:
        ValueError: the axes are not three (two) different directions of the body.
    """
    if image.ndim == 2:
        spacing_3d = None if spacing is None else (1.0, *spacing)
        return find_lungs(image[None], spacing_3d, "S" + axes, is_hu, thresholds)[0]
    canonical = to_canonical(image, axes).astype(np.float32)
    if is_hu:
        canonical = np.clip(canonical, *HU_RANGE)
    else:
        canonical = np.stack([calibrate(picture) for picture in canonical])
    spacing = _spacing_of_pictures(canonical) if spacing is None else \
        tuple(spacing[axis] for axis in canonical_order(axes))
    size = _body_size(canonical, spacing) if is_hu else 1.0

    reduced, factor = _reduce(canonical, spacing, size * _WORKING_SPACING_MM)
    working_spacing = (spacing[0], spacing[1] * factor, spacing[2] * factor)
    lungs = _find_in_canonical(reduced, working_spacing, thresholds.scaled(size))
    lungs = _enlarge(lungs, canonical.shape) if factor > 1 else lungs
    return from_canonical(lungs, axes)


def calibrate(picture: np.ndarray) -> np.ndarray:
    """Gray values [y, x] of an unknown window → about HU, by the modes of lung and of soft tissue."""
    smooth = ndimage.gaussian_filter(picture.astype(np.float32), 1)
    inside = smooth[smooth > smooth.min() + 1]                  # without black padding
    if inside.size < 100 or np.ptp(inside) < 4:
        return np.full(picture.shape, SOFT_TISSUE_HU, np.float32)
    middle = threshold_otsu(inside)
    lung = float(np.median(inside[inside < middle]))
    counts = np.bincount(np.rint(inside[inside >= middle] - middle).astype(int))
    tissue = middle + float(np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 2)))
    return (LUNG_HU + (smooth - lung) * (SOFT_TISSUE_HU - LUNG_HU) / max(tissue - lung, 1.0)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# Geometry


def _spacing_of_pictures(hu: np.ndarray) -> tuple[float, float, float]:
    columns = np.flatnonzero((hu < -300).mean(axis=(0, 1)) > 0.1)
    width = columns[-1] - columns[0] + 1 if columns.size else hu.shape[2]
    return 1.0, LUNGS_WIDTH_MM / width, LUNGS_WIDTH_MM / width


def _body_size(hu: np.ndarray, spacing: tuple[float, ...]) -> float:
    """1 for an adult, less for a child: the body's width as a share of the narrowest adult's."""
    first, last = body_columns(hu)
    return float(np.clip((last - first) * spacing[2] / NARROWEST_ADULT_MM, 0.25, 1))


def _reduce(hu: np.ndarray, spacing: tuple[float, ...], target: float) -> tuple[np.ndarray, int]:
    """Block means in plane, so that a pixel is about as large as `target` mm."""
    factor = max(1, int(target / max(spacing[1], spacing[2])))
    if factor == 1:
        return hu, 1
    padding = [(0, 0)] + [(0, -size % factor) for size in hu.shape[1:]]
    padded = np.pad(hu, padding, mode="edge")
    blocks = padded.reshape(len(hu), padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)
    return blocks.mean(axis=(2, 4)), factor


def _enlarge(lungs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """To the full grid; each boundary is interpolated linearly."""
    factor = -(-shape[2] // lungs.shape[2])
    result = np.zeros(shape, np.uint8)
    for index, lung_map in enumerate(lungs):
        for value in (1, 2):
            if (lung_map == value).any():
                share = ndimage.zoom((lung_map == value).astype(np.float32), factor, order=1, grid_mode=True,
                                     mode="nearest")
                result[index][share[:shape[1], :shape[2]] > 0.5] = value
    return result


# ----------------------------------------------------------------------------------------------------------------------
# The steps, on HU with axes S, P, L


def _find_in_canonical(hu: np.ndarray, spacing: tuple[float, ...], t: LungThresholds) -> np.ndarray:
    air = np.stack([_air_in_body(slice_hu, spacing, t) for slice_hu in hu])
    air = _keep_lung_pieces(air, hu, spacing, t)
    middle, _ = _middle_and_width(air, hu, spacing)
    air = np.stack([_without_airways(*pair, middle, spacing, t) for pair in zip(air, hu, strict=True)])
    air = _without_bowel_gas(air, hu, middle, t)
    air = _keep_lung_pieces(air, hu, spacing, t)                    # what hung on the windpipe: larynx, pharynx
    middle, width = _middle_and_width(air, hu, spacing)
    lungs = np.zeros(hu.shape, np.uint8)
    rows, columns = _box(air, middle, width)                        # the rest of the picture is not needed
    for index in np.flatnonzero(air.any(axis=(1, 2))):
        box = index, rows, columns
        is_left = _left_of_path(hu[box], middle - columns.start, width)
        lungs[box] = _fill(air[box], is_left, hu[box], middle - columns.start, spacing, t)
    return lungs


def _box(air: np.ndarray, middle: float, width: float) -> tuple[slice, slice]:
    """Rows and columns of all lungs; the columns reach as far on both sides of the midline, which is part of them."""
    rows = np.flatnonzero(air.any(axis=(0, 2)))
    if not rows.size:
        return slice(0, air.shape[1]), slice(0, air.shape[2])
    half = int(width / 2) + 2
    return slice(rows[0], rows[-1] + 1), slice(max(0, int(middle) - half), int(middle) + half + 1)


def _middle_and_width(air: np.ndarray, hu: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """Column of the midline, and in pixels the width of lungs that reach as far on both sides of it.

    The midline is the spine's, because a lung without air must not move it; half way across the lungs where no bone
    is seen.
    """
    slices, rows, columns = (np.flatnonzero(air.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    if not columns.size:
        return air.shape[2] / 2, air.shape[2]
    spine = spine_column(hu[slices], spacing, first_row=int(rows.mean()))
    middle = (columns[0] + columns[-1]) / 2 if spine is None else spine
    return middle, 2 * max(columns[-1] - middle, middle - columns[0]) + 1


def _air_in_body(hu: np.ndarray, spacing: tuple[float, ...], t: LungThresholds) -> np.ndarray:
    """[y, x] bool: what is as light as lung and enclosed by the body (or by the edge of a picture cropped to it)."""
    smooth = ndimage.gaussian_filter(hu, 0.5)
    air = smooth < t.air_hu
    if np.concatenate([air[0], air[-1], air[:, 0], air[:, -1]]).mean() < 0.5:
        return air & ~_outside_corners(air, smooth, t)              # cropped to the chest: the edge is tissue
    tissue = ndimage.binary_opening(~air, iterations=max(1, round(t.thinnest_wall_mm / spacing[2])))
    if not tissue.any():
        return np.zeros_like(air)
    body = _largest(tissue)
    enclosed = air & ndimage.binary_fill_holes(body)
    return enclosed | _cut_open(air & ~enclosed, body, hu, spacing, t)


def _cut_open(air: np.ndarray, body: np.ndarray, hu: np.ndarray, spacing: tuple[float, ...], t: LungThresholds,
              ) -> np.ndarray:
    """Lung that the body does not enclose, because the edge of the image or of the reconstructed circle cuts it.

    It is denser than room air, and the body surrounds two thirds of it and more: measured on real slices, 0.70 to 0.97
    of its border, against 0 to 0.56 of blankets' and tables'. Narrow gaps between body and table do not count: they
    lie outside of the body's convex hull.
    """
    dark = ndimage.gaussian_filter(hu, 1) < t.gas_hu
    rim = round(t.outside_mm / spacing[2])
    outside = _dilated(_touching_edge(ndimage.binary_opening(dark, iterations=rim)), rim)
    pieces = connected_components(air & ~outside, connectivity=1)
    lung = np.zeros_like(air)
    for region in regionprops(pieces):
        if region.area * spacing[1] * spacing[2] > t.smallest_cut_mm2:
            piece = pieces == region.label
            filled = ndimage.binary_fill_holes(piece)
            border = _dilated(filled, 2) & ~filled
            if border.any() and body[border].mean() > 0.65 and _hull(body)[piece].mean() > 0.2:
                lung |= piece
    return lung


def _outside_corners(air: np.ndarray, hu: np.ndarray, t: LungThresholds) -> np.ndarray:
    """Room air and black padding in a cropped picture: pieces in a corner, or dark ones at the edge."""
    pieces = connected_components(air, connectivity=1)
    corners = {int(pieces[y, x]) for y in (0, -1) for x in (0, -1)}
    edge = set(np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])).tolist())
    dark = {piece for piece in edge - {0} if np.median(hu[pieces == piece]) < t.gas_hu}
    return np.isin(pieces, list((corners | dark) - {0}))


def _keep_lung_pieces(air: np.ndarray, hu: np.ndarray, spacing: tuple[float, ...], t: LungThresholds) -> np.ndarray:
    """Drop specks, and pieces apart from the lungs that are as dark as room air: bowel gas, larynx, table."""
    pieces = connected_components(air, connectivity=1)
    regions = regionprops(pieces)
    if not regions:
        return air
    largest = max(region.area for region in regions)
    pixel_mm2 = spacing[1] * spacing[2]
    smallest = t.smallest_piece_mm2 / pixel_mm2 if len(air) == 1 else t.smallest_piece * largest
    kept = [region.label for region in regions if region.area >= smallest and
            (len(air) == 1 or region.area > t.largest_gas * largest
             or np.median(hu[region.slice][region.image]) >= t.gas_hu)]
    return np.isin(pieces, kept)


def _without_airways(air: np.ndarray, hu: np.ndarray, middle: float, spacing: tuple[float, ...],
                     t: LungThresholds) -> np.ndarray:
    pieces = connected_components(air, connectivity=1)
    airways = [region.label for region in regionprops(pieces)
               if region.area * spacing[1] * spacing[2] < t.airway_mm2
               and abs(region.centroid[1] - middle) * spacing[2] < t.airway_from_midline_mm
               # The darkest quarter: in coarse pixels most of a windpipe is half wall.
               and np.percentile(hu[region.slice][region.image], 25) < t.gas_hu]
    return air & ~np.isin(pieces, airways)


def _without_bowel_gas(air: np.ndarray, hu: np.ndarray, middle: float, t: LungThresholds) -> np.ndarray:
    """In the lower half, drop what is as dark as room air in its slice: gas that touches the lung from below.

    Not on a side where the lung itself is so dark (emphysema).
    """
    lung = air.copy()
    if not air.any():
        return lung
    lower_half = range(int(np.average(np.arange(len(air)), weights=air.sum(axis=(1, 2)))))
    for side in (slice(0, round(middle)), slice(round(middle), None)):
        one_air, one_hu = air[:, :, side], hu[:, :, side]
        if not one_air.any() or np.median(one_hu[one_air]) < t.gas_hu:
            continue
        for index in lower_half:
            pieces = connected_components(one_air[index], connectivity=1)
            gas = [region.label for region in regionprops(pieces)
                   if np.median(one_hu[index][region.slice][region.image]) < t.gas_hu]
            lung[index, :, side] &= ~np.isin(pieces, gas)
    return lung


def _left_of_path(hu: np.ndarray, middle: float, width: float) -> np.ndarray:
    """[y, x] bool: the patient's left of the brightest path from front to back near the midline.

    Dynamic programming, one row at a time; a step moves at most one pixel sideways.
    """
    height, columns = hu.shape
    distance = np.abs(np.arange(columns) - middle) / width
    # Air costs 1, soft tissue nothing; where the picture does not decide, the midline does.
    cost = np.clip(-hu / 1000, 0, 1) + 0.3 * distance ** 2 + 1e-3
    cost[:, distance > 0.25] = np.inf
    total = cost[0].copy()
    steps = np.zeros((height, columns), np.int8)
    for row in range(1, height):
        padded = np.pad(total, 1, constant_values=np.inf)
        candidates = np.stack([padded[:-2], padded[1:-1] - 1e-6, padded[2:]])        # straight on, if all are equal
        steps[row] = candidates.argmin(axis=0) - 1
        total = candidates.min(axis=0) + cost[row]
    column = int(total.argmin())
    is_left = np.zeros(hu.shape, bool)
    for row in range(height - 1, -1, -1):
        is_left[row, column + 1:] = True
        column += int(steps[row, column])
    return is_left


def _fill(air: np.ndarray, is_left: np.ndarray, hu: np.ndarray, middle: float, spacing: tuple[float, ...],
          t: LungThresholds) -> np.ndarray:
    """Aerated lung of a slice → left 1 and right 2, with vessels, and consolidation at the chest wall."""
    both_hull = _hull(air)
    lungs = np.zeros(air.shape, np.uint8)
    for value, side in ((1, is_left), (2, ~is_left)):
        if not (air & side).any():
            continue
        lung = _closing(air & side, t.closing_mm / spacing[2]) & side
        lung |= _pockets(lung, both_hull & side, middle, spacing, t)
        lung = _fill_holes(lung, hu, spacing, t)
        lungs[lung & (lungs == 0)] = value
    return lungs


def _pockets(lung: np.ndarray, hull: np.ndarray, middle: float, spacing: tuple[float, ...], t: LungThresholds,
             ) -> np.ndarray:
    """What lies between the convex chest wall and the lung, seen from the side and from the back.

    From the back only behind the lung's centre and away from the spine: there the hull spans muscle and vertebra.
    """
    rows, columns = np.indices(lung.shape, sparse=True)
    centre_row, centre_column = np.mean(np.nonzero(lung), axis=1)
    is_left_lung = centre_column > middle
    outwards = slice(None, None, -1 if is_left_lung else 1)
    from_side = _before_first(lung[:, outwards], hull[:, outwards], t.pocket_mm / spacing[2])[:, outwards]
    own_hull = _hull(lung) & hull
    from_back = _before_first(lung.T[:, ::-1], own_hull.T[:, ::-1], t.pocket_mm / spacing[1])[:, ::-1].T
    is_behind = (rows > centre_row) & (np.abs(columns - middle) * spacing[2] > t.spine_mm)
    return from_side | from_back & is_behind


def _before_first(lung: np.ndarray, hull: np.ndarray, deepest: float) -> np.ndarray:
    """In each row, from the first pixel of the hull to the first of the lung, if not deeper than `deepest` pixels."""
    position = np.arange(lung.shape[1])
    first_lung, first_hull = lung.argmax(axis=1)[:, None], hull.argmax(axis=1)[:, None]
    is_pocket = lung.any(axis=1)[:, None] & (first_lung - first_hull <= deepest)
    return is_pocket & hull & (position < first_lung)


def _fill_holes(lung: np.ndarray, hu: np.ndarray, spacing: tuple[float, ...], t: LungThresholds) -> np.ndarray:
    """All holes but large, round, smooth ones that are as dense as liver or as dark as gas: the diaphragm's dome."""
    filled = ndimage.binary_fill_holes(lung)
    pieces = connected_components(filled & ~lung, connectivity=1)
    domes = [region.label for region in regionprops(pieces)
             if region.area * spacing[1] * spacing[2] > t.dome_mm2 and region.solidity > 0.9
             and region.axis_minor_length > 0.6 * region.axis_major_length
             and not t.gas_hu < np.median(hu[region.slice][region.image]) < t.dome_hu]
    return filled & ~np.isin(pieces, domes)


def _closing(mask: np.ndarray, radius: float) -> np.ndarray:
    """Closing by a disk of `radius` pixels, by distances: as fast for large disks as for small ones."""
    margin = int(np.ceil(radius)) + 1
    padded = np.pad(mask, margin)
    dilated = ndimage.distance_transform_edt(~padded) <= radius
    return (ndimage.distance_transform_edt(dilated) > radius)[margin:-margin, margin:-margin]


def _touching_edge(mask: np.ndarray) -> np.ndarray:
    """The pieces of a 2-D mask that reach the edge of the image."""
    pieces = connected_components(mask, connectivity=1)
    edge = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    return mask & np.isin(pieces, np.unique(edge[edge > 0]))


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    return ndimage.binary_dilation(mask, iterations=radius) if radius else mask


def _hull(mask: np.ndarray) -> np.ndarray:
    return convex_hull_image(mask) if mask.sum() > 3 else mask


def _largest(mask: np.ndarray) -> np.ndarray:
    pieces = connected_components(mask, connectivity=1)
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
