"""The procedural chest CT: reproducible, in HU, exactly labelled, and on the right side."""

import json

import numpy as np
import pytest
import SimpleITK
from numpy.random import SeedSequence, default_rng

from nnunet_synth.data.phantom import (
    PhantomCase,
    PhantomSettings,
    draw_case,
    scan,
    segment_by_intensity,
    write_phantom_dataset,
)
from nnunet_synth.data.phantom_chest import (
    Chest,
    Grid,
    Patient,
    Segment,
    add_distractors,
    add_lesions,
    ellipse,
    grow_tree,
)
from nnunet_synth.errors import UserError

SETTINGS = PhantomSettings(size=96, num_slices=6)


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [draw_case(SeedSequence([1, i]), SETTINGS) for i in range(8)]


def draw_chest(seed: int, shape=(6, 96, 96)) -> Chest:
    grid = Grid(shape, (8.0, 370 / shape[1], 370 / shape[2]))
    return Chest(Patient.draw(default_rng(seed)), grid, default_rng(seed + 1))


def read(path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


class TestCase:
    def test_same_seed_same_case(self, cases):
        again = draw_case(SeedSequence([1, 3]), SETTINGS)
        for name in ("image", "label", "layout"):
            assert np.array_equal(getattr(again, name), getattr(cases[3], name))

    def test_a_seed_object_may_be_used_twice(self):
        seed = SeedSequence(5)
        small = PhantomSettings(size=32, num_slices=2)
        assert np.array_equal(draw_case(seed, small).image, draw_case(seed, small).image)

    def test_other_seeds_give_other_patients(self, cases):
        for i, a in enumerate(cases):
            for b in cases[i + 1:]:
                assert np.mean(a.layout != b.layout) > 0.002
                assert np.corrcoef(a.image.ravel(), b.image.ravel())[0, 1] < 0.99

    def test_types(self, cases):
        case = cases[0]
        assert (case.image.dtype, case.label.dtype, case.layout.dtype) == (np.int16, np.uint8, np.uint8)
        assert case.image.shape == case.label.shape == case.layout.shape == (6, 96, 96)
        assert case.image.min() >= -1024 and case.image.max() <= 3071
        assert case.spacing == pytest.approx((8.0, 370 / 96, 370 / 96))

    def test_lesions_are_inside_the_lungs_and_lungs_inside_the_body(self, cases):
        for case in cases:
            assert case.label.any() and set(np.unique(case.label)) == {0, 1}
            assert set(np.unique(case.layout)) == {0, 1, 2}
            assert (case.layout[case.label > 0] > 0).all()
            edge = np.ones(case.layout.shape[1:], bool)
            edge[3:-3, 3:-3] = False
            assert not case.layout[:, edge].any()

    def test_left_is_at_large_x_and_back_at_large_y(self, cases):
        for case in cases:
            columns = np.arange(96)[None, None]
            left, right = ((columns * (case.layout == value)).sum() / (case.layout == value).sum() for value in (1, 2))
            assert left > right + 15
            bone = (case.image > 200) & (np.abs(columns - 47.5) < 6)
            assert bone[:, 48:].sum() > 2 * bone[:, :48].sum()          # the spine, and the sternum in front
        # The heart takes room from the left lung.
        assert sum((c.layout == 1).sum() for c in cases) < sum((c.layout == 2).sum() for c in cases)

    def test_without_lesions_the_rest_is_the_same(self, cases):
        healthy = draw_case(SeedSequence([1, 3]), SETTINGS, has_lesions=False)
        assert not healthy.label.any()
        far = cases[3].layout == 0
        assert np.array_equal(healthy.layout, cases[3].layout)
        assert np.mean(np.abs(healthy.image[far].astype(int) - cases[3].image[far]) > 30) < 0.02

    def test_tissues_have_their_hounsfield_units(self, cases):
        for case in cases:
            healthy = (case.layout > 0) & (case.label == 0)
            assert -930 < np.median(case.image[healthy]) < -740
            assert -760 < np.median(case.image[case.label > 0]) < 50
            assert np.median(case.image[:, :2]) < -950                                  # air in front of the patient
            assert 150 < np.percentile(case.image, 99.9) < 1200                         # bone
            soft = case.image[(case.image > 0) & (case.image < 90) & (case.layout == 0)]
            assert soft.size > 2000                                                     # heart, muscle, vessels
            fat = case.image[(case.image > -140) & (case.image < -60) & (case.layout == 0)]
            assert fat.size > 500

    def test_the_same_patient_at_another_matrix_size(self):
        coarse, fine = (draw_case(SeedSequence(9), PhantomSettings(size, num_slices=4), False) for size in (64, 128))
        overlap = (coarse.layout > 0) == (fine.layout[:, ::2, ::2] > 0)
        assert overlap.mean() > 0.97

    def test_slices_follow_each_other(self, cases):
        for case in cases:
            neighbour = np.corrcoef(case.image[2].ravel(), case.image[3].ravel())[0, 1]
            assert neighbour > np.corrcoef(case.image[0].ravel(), case.image[5].ravel())[0, 1]
            assert neighbour > 0.9

    @pytest.mark.parametrize("size, num_slices", [(32, 1), (33, 2), (48, 12)])
    def test_other_matrix_sizes(self, size, num_slices):
        case = draw_case(SeedSequence(2), PhantomSettings(size=size, num_slices=num_slices))
        assert case.image.shape == (num_slices, size, size) and case.label.any()

    @pytest.mark.parametrize("wrong", [dict(size=31), dict(num_slices=0), dict(slice_spacing=0),
                                       dict(pixel_spacing=-1)])
    def test_impossible_settings(self, wrong):
        with pytest.raises(UserError, match="phantom"):
            PhantomSettings(**wrong)


class TestDisease:
    @pytest.mark.parametrize("seed", range(4))
    def test_a_voxel_is_labelled_where_the_lesion_changed_it(self, seed):
        chest = draw_chest(seed)
        before = chest.image.copy()
        mask = add_lesions(chest, default_rng(seed))
        change = chest.image - before
        assert change.min() >= 0                                        # lesions never darken the lung
        outside = ~mask & (chest.layout > 0)
        assert (change[chest.layout == 0] == 0).all()
        interior = mask & (chest.lung < -4) & (before < -680) & (chest.airways < 0.05)   # no vessel, no airway wall
        assert change[interior].min() > 20
        assert np.median(change[interior]) > 3 * np.median(change[outside & (change > 1)])

    def test_lesions_are_ground_glass_and_consolidation(self):
        density = []
        for seed in range(12):
            chest = draw_chest(seed)
            mask = add_lesions(chest, default_rng(seed))
            core = mask & (chest.lung < -6) & (chest.vessels < 0.02) & (chest.airways < 0.02)
            density.append(chest.image[core])
        density = np.concatenate(density)
        assert np.mean((density > -740) & (density < -380)) > 0.6       # ground glass and its soft border
        assert 0.02 < np.mean((density > -110) & (density < 60)) < 0.4  # consolidation
        assert density.max() < 60

    def test_vessels_reach_the_density_of_lesions(self):
        chest = draw_chest(3)
        in_lung = (chest.lung < -6) & (chest.vessels > 0.1)
        density = chest.image[in_lung]
        assert np.mean((density > -700) & (density < 50)) > 0.5 and in_lung.sum() > 100

    def test_airways_are_air(self):
        chest = draw_chest(3)
        assert (chest.image[chest.airways > 0.95] < -900).all() and (chest.airways > 0.95).any()

    def test_distractors_change_lungs_without_a_label(self):
        changed = []
        for seed in range(10):
            chest = draw_chest(seed)
            before, lungs = chest.image.copy(), chest.layout > 0
            add_distractors(chest, default_rng(seed))
            changed.append(np.mean((chest.image - before)[lungs] > 150))
            assert not (chest.layout > 0)[~lungs].any()                 # fluid is taken from the lung, never added
        assert sum(share > 0.01 for share in changed) >= 4 and min(changed) == 0


class TestScanner:
    def test_noise_is_correlated_by_the_kernel(self):
        water = np.zeros((4, 96, 96), np.float32)
        neighbour = []
        for seed in range(12):
            noise = scan(water, default_rng(seed)).astype(float)
            noise -= noise.mean()
            assert 3 < noise.std() < 90
            neighbour.append(np.mean(noise[..., 1:] * noise[..., :-1]) / noise.var())
        assert max(neighbour) > 0.4 and min(neighbour) < -0.05          # smooth kernels, sharp kernels

    def test_slices_have_independent_noise(self):
        noise = scan(np.zeros((2, 128, 128), np.float32), default_rng(0)).astype(float)
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.15


class TestGeometry:
    def test_noise_is_a_function_of_the_position(self):
        one = Grid((3, 40, 50), (8, 4, 4)).noise(default_rng(0), 20)
        two = Grid((3, 80, 100), (8, 2, 2)).noise(default_rng(0), 20)
        # Each coarse centre lies in the middle of four fine ones.
        assert np.allclose(one, two.reshape(3, 40, 2, 50, 2).mean((2, 4)), atol=0.02)
        assert 0.8 < Grid((12, 96, 96), (8, 4, 4)).noise(default_rng(1), 8).std() < 1.2

    def test_ellipse_of_a_circle_is_the_distance(self):
        x, y = np.meshgrid(np.linspace(-30, 30, 61), np.linspace(-30, 30, 61))
        near = np.abs(np.hypot(x, y) - 15) < 3
        assert np.allclose(ellipse((x, 15.0), (y, 15.0))[near], (np.hypot(x, y) - 15)[near], atol=1e-3)

    def test_segment_distance(self):
        segment = Segment(np.array([0.0, 0, 0]), np.array([0.0, 0, 10]), 1.0)
        position = [np.array([0.0, 3, 0]), np.array([0.0, 4, 0]), np.array([5.0, 5, 13])]
        assert segment.distance(position) == pytest.approx([0, 5, 3])

    def test_tree_reaches_every_end_and_follows_murray(self):
        ends = default_rng(0).uniform(-50, 50, (40, 3))
        root = np.zeros(3)
        segments = grow_tree(root, ends, leaf_radius=0.5)
        assert {tuple(s.end) for s in segments} == {tuple(end) for end in ends}
        starts = [tuple(s.start) for s in segments]
        for segment in segments:
            children = [s for s in segments if tuple(s.start) == tuple(segment.end)]
            assert segment.radius ** 3 == pytest.approx(0.5 ** 3 + sum(c.radius ** 3 for c in children))
        assert tuple(root) in starts


class TestAnalyticSegmenter:
    def test_it_segments_real_phantoms(self, cases):
        scores = []
        for case in cases:
            for z in range(len(case.label)):
                truth = case.label[z] > 0
                if truth.sum() > 20:
                    found = segment_by_intensity(case.image[z], case.layout[z])
                    scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        assert 0.6 < np.mean(scores) < 0.9

    def test_slices_and_volumes_agree(self, cases):
        volume = segment_by_intensity(cases[0].image, cases[0].layout)
        assert np.array_equal(volume[2], segment_by_intensity(cases[0].image[2], cases[0].layout[2]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("raw"), 7, num_labelled=7, num_unlabelled=3, num_test=4,
                                 size=32, num_slices=3, seed=4, healthy_fraction=0.3)


class TestDataset:
    def test_layout_on_disk(self, folder):
        assert folder.name == "Dataset007_ChestPhantom"
        count = {path.name: len(list(path.iterdir())) for path in folder.iterdir() if path.is_dir()}
        assert count == {"imagesTr": 7, "labelsTr": 7, "layoutsTr": 7, "imagesUl": 3, "layoutsUl": 3,
                         "imagesTs": 4, "labelsTs": 4}
        content = json.loads((folder / "dataset.json").read_text())
        assert content["channel_names"] == {"0": "CT"} and content["labels"] == {"background": 0, "infection": 1}
        assert content["numTraining"] == 7 and content["file_ending"] == ".nii.gz"
        assert content["nnunet_synth"]["layout_labels"] == {"left_lung": 1, "right_lung": 2}
        assert content["nnunet_synth"]["licence"] == "CC0"

    def test_nnunet_accepts_it(self, folder):
        from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
        verify_dataset_integrity(str(folder), num_processes=1)

    def test_geometry_and_content(self, folder):
        image = SimpleITK.ReadImage(str(folder / "imagesTr/phantom_tr_002_0000.nii.gz"))
        assert image.GetSize() == (32, 32, 3)
        assert image.GetSpacing() == pytest.approx((370 / 32, 370 / 32, 8.0))
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        case = draw_case(SeedSequence([4, 0, 2]), PhantomSettings(32, 3), has_lesions=True)
        label = read(folder / "labelsTr/phantom_tr_002.nii.gz")
        assert np.array_equal(read(folder / "layoutsTr/phantom_tr_002.nii.gz"), case.layout)
        assert np.array_equal(label, case.label) or not label.any()

    def test_some_cases_are_healthy(self, folder):
        labels = [read(path) for path in folder.glob("labels*/*")]
        assert sum(not label.any() for label in labels) == 2 + 1

    def test_no_two_images_are_equal(self, folder):
        assert len({read(path).tobytes() for path in folder.glob("images*/*")}) == 14

    def test_bad_input_leaves_nothing(self, folder):
        raw = folder.parent
        for wrong, message in ((dict(dataset_id=7), "exists already"), (dict(dataset_id=0), "1…999"),
                               (dict(dataset_id=8, num_labelled=0), "at least one labelled"),
                               (dict(dataset_id=8, num_test=-1), "negative"),
                               (dict(dataset_id=8, size=16), "32 pixels"),
                               (dict(dataset_id=8, healthy_fraction=1.5), "healthy_fraction")):
            with pytest.raises(UserError, match=message):
                write_phantom_dataset(raw, **wrong)
        assert [path.name for path in raw.iterdir()] == ["Dataset007_ChestPhantom"]
