"""The anatomy and the disease of the procedural chest: continuous functions of the position in millimetres.

Coordinates are the patient's, in mm: x to the patient's left, y to the back, z to the head (LPS, as in DICOM and
SimpleITK), with the hilum of the lungs at the origin. Every shape is a signed distance (negative inside) and every
texture a spline over a lattice in mm, so one patient looks the same at each matrix size and from slice to slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator

LEFT, RIGHT = 1, -1                     # sign of x
LEFT_LUNG, RIGHT_LUNG = 1, 2            # values of the layout map

AIR, LUNG, FAT, MUSCLE, SKIN, BLOOD, FLUID, LIVER = -1000.0, -860.0, -100.0, 50.0, -10.0, 42.0, 12.0, 58.0
MARROW, CORTICAL = 190.0, 650.0         # HU
SMALLEST_LESION_MM3 = 3000.0            # a diseased patient shows at least this much of it


# Geometry -----------------------------------------------------------------------------------------------------------

class Grid:
    """The voxel centres of a volume, in mm.

    Args:
        shape: (slices, rows, columns).
        spacing: (between slices, rows, columns) in mm.
        centre: (z, y, x) in mm of the middle of the volume in the patient's coordinates.
    """

    def __init__(self, shape: tuple[int, int, int], spacing: tuple[float, float, float],
                 centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        self.shape, self.spacing = shape, spacing
        self.axes = [((np.arange(n) - (n - 1) / 2) * step + middle).astype(np.float32)
                     for n, step, middle in zip(shape, spacing, centre, strict=True)]
        self.pixel = max(spacing[1:])   # the blur of an edge: one pixel
        self.voxel_volume = float(np.prod(spacing))

    @cached_property
    def zyx(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three arrays that broadcast to `shape`."""
        z, y, x = self.axes
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """The share of each pixel that lies inside, from the signed distance in mm of its centre to the border."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def noise(self, rng: Generator, length: float, length_z: float | None = None) -> np.ndarray:
        """Gaussian random field [Z, Y, X], mean 0, variance about 1, correlated over about `length` mm.

        White noise on a lattice in the patient's coordinates, interpolated by cubic B-splines. The lattice covers
        ±256 mm whatever the grid is, so the field depends on the position alone.
        """
        steps = (length_z or length, length, length)
        lattice = rng.standard_normal([int(512 / step) + 4 for step in steps], dtype=np.float32)
        weights = [_spline_weights(axis, step, count)
                   for axis, step, count in zip(self.axes, steps, lattice.shape, strict=True)]
        # One axis after another, the cheapest first: few slices are left after the first product.
        field = np.tensordot(weights[0], lattice, 1)
        field = np.matmul(weights[1], field)
        return np.matmul(field, weights[2].T) / 0.479 ** 1.5   # the splines average: variance 151/315 for each axis


def _spline_weights(positions: np.ndarray, step: float, size: int) -> np.ndarray:
    """[positions, size] cubic B-spline weights of the lattice points at -256 mm + (i - 1) step."""
    offset = np.abs((positions[:, None] + 256) / step + 1 - np.arange(size)[None])
    near = 2 / 3 - offset ** 2 + offset ** 3 / 2
    far = np.clip(2 - offset, 0, None) ** 3 / 6
    return np.where(offset < 1, near, far).astype(np.float32)


def ellipse(*axes: tuple[np.ndarray, float | np.ndarray], power: float = 2.0) -> np.ndarray:
    """Signed distance in mm (first order) to the superellipse Σ |p/r|^power = 1; `axes` are pairs (p, r)."""
    ratios = [np.abs(p / r) + 1e-6 for p, r in axes]
    radius = sum(q ** power for q in ratios) ** (1 / power)
    gradient = np.sqrt(sum((q ** (power - 1) / r) ** 2 for q, (_, r) in zip(ratios, axes, strict=True)))
    return (radius - 1) * radius ** (power - 1) / gradient


def smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Intersection of two signed distances with the edge rounded over `width` mm."""
    return np.maximum(a, b) + np.clip(width - np.abs(a - b), 0, None) ** 2 / (4 * width)


def paint(image: np.ndarray, coverage: np.ndarray, value: float | np.ndarray) -> None:
    """Lay `value` over `image` in place, with partial volume."""
    image += coverage * (value - image)


# The patient --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Patient:
    """What differs from one body to the next (mm and HU)."""

    half_width: float
    half_depth: float
    fat: float              # thickness of the layer under the skin
    chest_wall: float       # muscle and ribs
    heart: float            # radius
    lung_density: float     # HU
    gravity: float          # HU by which the lowest lung is denser than the highest
    diaphragm: float        # z of the right dome
    calcification: float    # scale of the bones' density
    roll: float             # radians

    @classmethod
    def draw(cls, rng: Generator) -> Patient:
        return cls(half_width=rng.uniform(145, 170), half_depth=rng.uniform(98, 120), fat=rng.uniform(4, 20),
                   chest_wall=rng.uniform(15, 21), heart=rng.uniform(46, 62),
                   lung_density=LUNG + rng.normal(0, 28), gravity=rng.uniform(30, 130),
                   diaphragm=rng.uniform(-75, -28), calcification=rng.uniform(0.7, 1.15), roll=rng.normal(0, 0.035))


class Chest:
    """A healthy chest on a grid: `image` in HU (float32 [Z, Y, X]) and `lung`, the signed distance to the lungs."""

    def __init__(self, patient: Patient, grid: Grid, rng: Generator) -> None:
        self.patient, self.grid = patient, grid
        z, y, x = grid.zyx
        cos, sin = np.cos(patient.roll), np.sin(patient.roll)
        self.z, self.y, self.x = z, y * cos - x * sin, x * cos + y * sin
        self.wobble = grid.noise(rng, 45)       # one slow field makes every border irregular
        self.image = np.full(grid.shape, AIR, np.float32)
        self._draw_body(rng)
        self._draw_mediastinum(rng)
        self.lung = self._lung_distance()
        self._draw_lungs(rng)
        self._draw_bones()
        self.layout = np.where(self.lung < 0, np.where(self.x > 0, LEFT_LUNG, RIGHT_LUNG), 0).astype(np.uint8)
        self._draw_vessels_and_airways(rng)

    @cached_property
    def _taper(self) -> np.ndarray:
        """The thorax narrows towards the apex."""
        return 1 - 0.3 * (np.clip(self.z - 10, 0, None) / 110) ** 2

    @cached_property
    def cavity(self) -> np.ndarray:
        """Signed distance to the inner side of the ribs; flattened in front of the spine, as a thorax is."""
        inset = self.patient.fat + self.patient.chest_wall
        width = (self.patient.half_width - inset) * self._taper
        depth = (self.patient.half_depth - 0.85 * inset) * self._taper
        return ellipse((self.x, width), (self.y, depth), power=2.35) + 1.5 * self.wobble

    def _draw_body(self, rng: Generator) -> None:
        patient, cover = self.patient, self.grid.coverage
        self.surface = surface = ellipse((self.x, patient.half_width * (0.5 + self._taper / 2)),
                                         (self.y, patient.half_depth), power=2.5) + 1.5 * self.wobble
        table = np.abs(self.y - patient.half_depth - 9 + (self.x / 60) ** 2) - 3
        paint(self.image, cover(table), -350.0)
        paint(self.image, cover(surface), SKIN)
        paint(self.image, cover(surface + 2.5), FAT + 12 * self.grid.noise(rng, 18))
        # Muscle is thick at the shoulder blades and striped by fat.
        stripes = self.grid.noise(rng, 22)
        paint(self.image, cover(np.maximum(surface + patient.fat, -1.2 - stripes * 3)), MUSCLE + 6 * stripes)

    @cached_property
    def spine(self) -> np.ndarray:
        """Signed distance to the vertebral body, which touches the back of the cavity."""
        return ellipse((self.x, 19.0), (self.y - self._spine_y, 16.0), power=2.4)

    @property
    def _spine_y(self) -> float:
        return 0.62 * self.patient.half_depth

    @cached_property
    def heart(self) -> np.ndarray:
        r = self.patient.heart
        ellipsoid = ellipse((self.x - 0.42 * r, 1.15 * r), (self.y + 0.5 * r, 0.85 * r), (self.z + 55, 1.25 * r))
        return ellipsoid + 2 * self.wobble

    @cached_property
    def _mediastinum(self) -> np.ndarray:
        """Signed distance to the space between the lungs: narrow in front, wide at the hilum."""
        hilum = 27 * np.exp(-((self.y - 4) / 30) ** 2 - (self.z / 50) ** 2)
        return np.abs(self.x - 4) - 9 - hilum - 9 * np.exp(-((self.y - 40) / 35) ** 2) + 2 * self.wobble

    def _draw_mediastinum(self, rng: Generator) -> None:
        cover = self.grid.coverage
        paint(self.image, cover(self.cavity), FAT + 10 * self.grid.noise(rng, 15))
        organs = self.grid.noise(rng, 14)
        paint(self.image, cover(np.maximum(np.maximum(self._mediastinum, self.cavity) + 6, -4 - 6 * organs)),
              MUSCLE - 8)
        paint(self.image, cover(self.heart + 3), BLOOD + 4 * organs)
        descending = ellipse((self.x - 22, 12.0), (self.y - self._spine_y + 14, 12.0))
        ascending = ellipse((self.x + 14, 16.0), (self.y + 22, 16.0), (self.z - 10, 60.0))
        cava = ellipse((self.x + 34, 9.0), (self.y + 14, 10.0), (self.z - 20, 60.0))
        for vessel in (descending, ascending, cava):
            paint(self.image, cover(vessel), BLOOD + 3)
        below = self._diaphragm_distance
        paint(self.image, cover(np.maximum(below, self.cavity + 2)), np.where(self.x < 20, LIVER, MUSCLE) + 4 * organs)

    @cached_property
    def _diaphragm_distance(self) -> np.ndarray:
        """Negative under the domes; the right one, over the liver, stands higher."""
        domes = [top - ((self.x - middle) / 13) ** 2 - ((self.y + 5) / 13) ** 2
                 for top, middle in ((self.patient.diaphragm, -75), (self.patient.diaphragm - 15, 75))]
        return self.z - np.maximum(*domes) + 4 * self.wobble

    def _lung_distance(self) -> np.ndarray:
        lung = smooth_max(self.cavity + 3, -self._mediastinum, 14)
        for organ in (self.heart, self.spine - 5, self._diaphragm_distance):
            lung = smooth_max(lung, -organ, 8)
        return lung

    def _draw_lungs(self, rng: Generator) -> None:
        patient = self.patient
        emphysema = np.clip(self.grid.noise(rng, 16) - rng.uniform(1.0, 3.5), 0, 1.5)
        density = (patient.lung_density + patient.gravity * (self.y / patient.half_depth) / 1.4
                   + 14 * self.grid.noise(rng, 30) + 12 * self.grid.noise(rng, 8) - 60 * emphysema)
        self.parenchyma = np.clip(density, -960, -690)
        paint(self.image, self.grid.coverage(self.lung), self.parenchyma)

    def _draw_bones(self) -> None:
        scale, cover = self.patient.calcification, self.grid.coverage
        self._draw_bone(self.spine)
        canal_y = self._spine_y + 25
        arch = np.abs(ellipse((self.x, 14.0), (self.y - canal_y, 12.0))) - 3
        processes = ellipse((self.x, 34.0), (self.y - canal_y + 4, 4.5))
        spinous = ellipse((self.x, 4.0), (self.y - canal_y - 24, 16.0))
        self._draw_bone(np.maximum(np.minimum(np.minimum(arch, processes), spinous), self.surface + 5))
        paint(self.image, cover(ellipse((self.x, 11.0), (self.y - canal_y, 9.0))), 25.0)
        sternum = ellipse((self.x, 17.0), (self.y + 0.97 * self._front, 6.0), power=3)
        self._draw_bone(sternum)
        # Ribs: rings around the cavity, 26 mm apart, that fall by 45 mm from the spine to the front.
        angle = np.arctan2(np.abs(self.x), self.y)
        height = self.z + 45 * angle / np.pi * 1.6
        along_z = height - 26 * np.round(height / 26)
        ribs = ellipse((self.cavity - 5.5, 4.5), (along_z, 8.0))
        paint(self.image, cover(ribs), MARROW * scale + 60)
        paint(self.image, cover(np.abs(ribs) - 0.8) * (ribs < 2), CORTICAL * scale)
        for side in (LEFT, RIGHT):
            u, v = self.x - side * 0.62 * self.patient.half_width, self.y - 0.66 * self.patient.half_depth
            blade = ellipse((u * 0.82 + side * v * 0.57, 30.0), (v * 0.82 - side * u * 0.57, 4.0), (self.z - 50, 62.0))
            self._draw_bone(np.maximum(blade, 9 - self.cavity))

    @property
    def _front(self) -> float:
        return self.patient.half_depth - 0.85 * (self.patient.fat + 0.45 * self.patient.chest_wall)

    def _draw_bone(self, distance: np.ndarray) -> None:
        scale, cover = self.patient.calcification, self.grid.coverage
        paint(self.image, cover(distance), CORTICAL * scale)
        paint(self.image, cover(distance + 2.2), MARROW * scale)

    def _draw_vessels_and_airways(self, rng: Generator) -> None:
        """Arteries and airways grow side by side from each hilum; the trachea divides above it."""
        bend = [4 * self.grid.noise(rng, 32) for _ in range(3)]
        position = [self.z + bend[0], self.y + bend[1], self.x + bend[2]]
        shape = self.grid.shape
        position = [np.ascontiguousarray(np.broadcast_to(axis, shape)) for axis in position]
        self.vessels = np.zeros(shape, np.float32)
        lumen, walls = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        airways = [Segment(np.array([90.0, 12, -2]), np.array([22.0, 8, -2]), 8.5)]
        for side, value in ((LEFT, LEFT_LUNG), (RIGHT, RIGHT_LUNG)):
            hilum = np.array([rng.uniform(-8, 4), rng.uniform(-4, 8), side * 34.0])
            airways.append(Segment(np.array([22.0, 8, -2]), hilum + [6, 4, -side * 6], 6.0))
            ends = self._points_inside(rng, value, int(rng.integers(70, 110)))
            for segment in grow_tree(hilum, ends, leaf_radius=rng.uniform(0.8, 1.1)):
                self._raise(self.vessels, segment, position)
            airways += [segment.widened(0.95) for segment in
                        grow_tree(hilum + [5, 4, 0], self._points_inside(rng, value, 16), leaf_radius=1.0)]
        for airway in airways:
            self._raise(walls, airway.widened(1, extra=1.3), position)
            self._raise(lumen, airway, position)
        paint(self.image, self.vessels * (self._diaphragm_distance > 0), BLOOD)
        paint(self.image, walls, np.float32(0))
        paint(self.image, lumen, AIR)
        self.airways = lumen

    def _points_inside(self, rng: Generator, lung: int, count: int) -> np.ndarray:
        """[count, 3] random points (z, y, x in mm) of one lung, some of them beyond the first and last slice."""
        voxels = np.argwhere((self.layout == lung) & (self.lung < -4))
        if not len(voxels):
            return np.zeros((0, 3))
        chosen = voxels[rng.integers(len(voxels), size=count)] + rng.uniform(-0.5, 0.5, (count, 3))
        points = np.stack([axis[0] + chosen[:, i] * step for i, (axis, step)
                           in enumerate(zip(self.grid.axes, self.grid.spacing, strict=True))], axis=1)
        points[:, 0] += rng.uniform(-6, 6, count)
        return points

    def _raise(self, target: np.ndarray, segment: Segment, position: list[np.ndarray]) -> None:
        """Maximum of `target` and the segment's coverage, computed in the segment's bounding box only."""
        margin = segment.radius + self.grid.pixel + 10      # 10 mm: how far the bend moves it
        box = tuple(slice(max(0, int(np.floor((low - margin - axis[0]) / step))),
                          max(0, int(np.ceil((high + margin - axis[0]) / step)) + 1))
                    for low, high, axis, step in zip(np.minimum(segment.start, segment.end),
                                                     np.maximum(segment.start, segment.end),
                                                     self.grid.axes, self.grid.spacing, strict=True))
        if target[box].size:
            distance = segment.distance([axis[box] for axis in position])
            np.maximum(target[box], slab_coverage(distance, segment.radius, self.grid.pixel), out=target[box])


@dataclass(frozen=True)
class Segment:
    """A piece of a tube; `start` and `end` are (z, y, x) in mm."""

    start: np.ndarray
    end: np.ndarray
    radius: float

    def widened(self, factor: float, extra: float = 0.0) -> Segment:
        return Segment(self.start, self.end, self.radius * factor + extra)

    def distance(self, position: list[np.ndarray]) -> np.ndarray:
        """Distance in mm from each position (z, y, x) to the axis of the tube."""
        offset = [axis - origin for axis, origin in zip(position, self.start, strict=True)]
        along = self.end - self.start
        share = sum(o * a for o, a in zip(offset, along, strict=True)) / max(float(along @ along), 1e-6)
        share = np.clip(share, 0, 1)
        return np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offset, along, strict=True)))


def slab_coverage(distance: np.ndarray, radius: float, pixel: float) -> np.ndarray:
    """Share of a pixel inside a tube, |[-r, r] ∩ [d - h/2, d + h/2]| / h: a thin vessel looks like ground glass."""
    overlap = np.minimum(radius, distance + pixel / 2) - np.maximum(-radius, distance - pixel / 2)
    return np.clip(overlap, 0, None) / pixel


def grow_tree(root: np.ndarray, ends: np.ndarray, leaf_radius: float) -> list[Segment]:
    """A branching tree from `root` [3] to every end [N, 3] (mm).

    Ends are joined, nearest to the root first, where the way to the root over the tree is short and the new piece is
    short as well. Radii follow Murray's law: the cube of a parent's radius is the sum of its children's cubes.
    """
    nodes = np.concatenate([root[None], ends[np.argsort(np.linalg.norm(ends - root, axis=1))]])
    way = np.zeros(len(nodes))
    parent = np.zeros(len(nodes), int)
    for i in range(1, len(nodes)):
        step = np.linalg.norm(nodes[:i] - nodes[i], axis=1)
        parent[i] = np.argmin(step + 0.55 * way[:i])
        way[i] = way[parent[i]] + step[parent[i]]
    flow = np.full(len(nodes), leaf_radius ** 3)
    for i in range(len(nodes) - 1, 0, -1):
        flow[parent[i]] += flow[i] if parent[i] else 0
    return [Segment(nodes[parent[i]], nodes[i], min(flow[i] ** (1 / 3), 5.5)) for i in range(1, len(nodes))]


# Disease ------------------------------------------------------------------------------------------------------------

def add_distractors(chest: Chest, rng: Generator) -> None:
    """What looks like a lesion, is none, and is not labelled: sagging lung, fluid, scars, breathing blur."""
    grid, patient = chest.grid, chest.patient
    inside = grid.coverage(chest.lung)
    ragged = grid.noise(rng, 20)
    fine = grid.noise(rng, 7)
    if rng.random() < 0.45:     # dependent atelectasis: a smooth band along the back of both lungs
        for side in (LEFT, RIGHT):
            thickness = rng.uniform(5, 14)
            depth = np.clip(1 + chest.cavity / thickness + 0.25 * ragged, 0, 1)
            back = np.clip((chest.y - rng.uniform(0.25, 0.45) * patient.half_depth) / 12, 0, 1)
            share = depth * back * (chest.x * side > 0) * inside
            paint(chest.image, 0.85 * share, rng.uniform(-420, -80) + 40 * fine)
    if rng.random() < 0.3:      # effusion: level along gravity, outside of the lung that it displaces
        side = rng.choice([LEFT, RIGHT])
        level = rng.uniform(0.32, 0.52) * patient.half_depth
        meniscus = level - chest.y - 10 * np.exp(-(chest.cavity / 10) ** 2) + 2 * ragged
        fluid = smooth_max(meniscus, chest.lung, 6) + 1e3 * (chest.x * side < 0)
        paint(chest.image, grid.coverage(fluid), FLUID + 4 * fine)
        chest.layout[fluid < 0] = 0
    if rng.random() < 0.45:     # scars and plate atelectasis: thin curved sheets
        for _ in range(int(rng.integers(1, 4))):
            normal = rng.standard_normal(3) * [0.6, 1, 0.6]
            normal /= np.linalg.norm(normal)
            offset = rng.uniform(-70, 70)
            sheet = normal[0] * chest.z + normal[1] * chest.y + normal[2] * chest.x - offset + 9 * ragged
            patch = grid.noise(rng, 28) > 0.6
            scar = slab_coverage(np.abs(sheet), rng.uniform(0.6, 1.8), grid.pixel) * patch * inside
            paint(chest.image, scar, rng.uniform(-350, 0))
    if rng.random() < 0.4:      # breathing: the dome and the heart smear into the lung
        reach = rng.uniform(4, 9)
        near = np.exp(-np.clip(np.minimum(chest._diaphragm_distance, chest.heart), 0, None) / reach)
        paint(chest.image, rng.uniform(0.2, 0.5) * near * inside, -200.0)


def add_lesions(chest: Chest, rng: Generator) -> np.ndarray:
    """Paint ground-glass opacities and consolidations into the lungs; returns their exact mask, bool [Z, Y, X].

    Ground glass: -700…-400 HU, consolidation: -100…50 HU, both textured; the border is soft and ragged, and a voxel is
    labelled when the lesion has at least half of it. Vessels run through lesions and belong to them.
    """
    grid = chest.grid
    while True:
        mask = _add_foci(chest, rng)
        if mask.sum() * grid.voxel_volume >= SMALLEST_LESION_MM3:
            return mask


def _add_foci(chest: Chest, rng: Generator) -> np.ndarray:
    grid = chest.grid
    severity = rng.gamma(2.0, 2.0)
    ragged = 0.34 * grid.noise(rng, 14) + 0.2 * grid.noise(rng, 7) + 0.1 * grid.noise(rng, 4)
    depth = np.full(grid.shape, -5.0, np.float32)           # > 0 inside a focus, 1 at its centre
    level = np.full(grid.shape, -600.0, np.float32)
    case_level = rng.uniform(-640, -460)
    for centre in _lesion_centres(chest, rng, 1 + rng.poisson(severity)):
        focus = _focus_depth(chest, rng, centre)
        level = np.where(focus > depth, case_level + rng.normal(0, 45), level)
        depth = np.maximum(depth, focus)
    depth = np.clip(depth, -5, 1) + ragged
    softness = rng.uniform(0.06, 0.16)
    membership = 1 / (1 + np.exp(np.clip(-depth / softness, -30, 30)))

    texture = 28 * grid.noise(rng, 11) + 22 * grid.noise(rng, 5)
    density = np.clip(level + texture, -700, -400)
    if rng.random() < 0.55:
        solid_from = rng.uniform(0.45, 1.0) + 0.2 * grid.noise(rng, 10)
        solid = 1 / (1 + np.exp(np.clip(-(depth - solid_from) / 0.08, -30, 30)))
        density += solid * (np.clip(rng.uniform(-60, 30) + texture, -100, 50) - density)
    lung = chest.layout > 0
    # Airways stay open (air bronchogram), vessels keep their own density where they are denser.
    covered = membership * grid.coverage(chest.lung) * lung * (1 - chest.airways)
    lesion = np.maximum(chest.image, density)
    paint(chest.image, covered, lesion)
    return (membership >= 0.5) & lung


def _lesion_centres(chest: Chest, rng: Generator, count: int) -> np.ndarray:
    """[count, 3] voxel indices, more often near the pleura and in the lower, posterior lung, as in COVID-19."""
    voxels = np.argwhere(chest.layout > 0)
    depth = -chest.cavity[tuple(voxels.T)]
    back = chest.grid.axes[1][voxels[:, 1]] / chest.patient.half_depth
    weight = np.exp(-depth / 14) * np.exp(1.1 * back) + 0.05
    return voxels[rng.choice(len(voxels), size=count, p=weight / weight.sum())]


def _focus_depth(chest: Chest, rng: Generator, centre: np.ndarray) -> np.ndarray:
    """1 - the normalised radius of one focus: a rotated ellipsoid, or a band along the pleura."""
    grid = chest.grid
    z, y, x = (axis - axes[i] for axis, axes, i in zip(grid.zyx, grid.axes, centre, strict=True))
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    size = rng.lognormal(np.log(20), 0.4)
    flat, long = size * rng.uniform(0.5, 1), size * rng.uniform(0.8, 1.4)
    radius = np.sqrt((u / size) ** 2 + (v / flat) ** 2 + (z / long) ** 2)
    if rng.random() < 0.3:
        band = np.clip(-chest.lung, 0, None) / rng.uniform(8, 15)
        radius = np.sqrt((0.55 * radius) ** 2 + band ** 2)
    return 1 - radius
