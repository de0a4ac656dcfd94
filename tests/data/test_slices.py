"""Training slices: the right cases, the right pixels, reproducible crops."""

import json

import blosc2
import numpy as np
import pytest
import scipy.ndimage
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synth.commands.preprocess import preprocess
from nnunet_synth.data.experiment import load_experiment
from nnunet_synth.data.slice_arrays import SliceArrays, _cut, random_crop
from nnunet_synth.data.slices import CaseSlices, FoldSlices, evenly
from nnunet_synth.errors import UserError
from tests.conftest import DATASET_ID


@pytest.fixture
def experiment(planned_dataset):
    preprocess(DATASET_ID, "2d", jobs=1)
    return load_experiment(DATASET_ID, "2d", 0)


def stored(experiment, case_id):
    """Image [C, z, y, x], annotation [z, y, x] and layout map [z, y, x] straight from the files."""
    folder = experiment.data_folder
    layout = blosc2.open(str(experiment.layouts_folder / f"{case_id}.b2nd"))[:]
    return blosc2.open(str(folder / f"{case_id}.b2nd"))[:], blosc2.open(str(folder / f"{case_id}_seg.b2nd"))[0], layout


def rewrite(experiment, case_id, change):
    """Store an edited annotation."""
    path = experiment.data_folder / f"{case_id}_seg.b2nd"
    segmentation = blosc2.open(str(path))[:]
    change(segmentation)
    path.unlink()
    blosc2.asarray(np.ascontiguousarray(segmentation), urlpath=str(path))


# ----------------------------------------------------------------------------------------------------------------------
# Which cases and slices


def test_only_labelled_training_cases_are_opened(experiment, monkeypatch):
    read = set()
    original = nnUNetDatasetBlosc2.load_case

    def spy(self, case_id):
        read.add(case_id)
        return original(self, case_id)

    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", spy)
    slices = FoldSlices(experiment)
    slices.sample(20, (32, 32), np.random.default_rng(0))
    list(slices.iterate(False))
    assert read == set(experiment.train_ids) and not read & set(experiment.val_ids)


def test_other_cases_are_refused(experiment):
    with pytest.raises(UserError, match="not labelled training cases"):
        FoldSlices(experiment, [*experiment.train_ids, experiment.val_ids[0]])
    with pytest.raises(UserError, match=r"nobody.*nnUNetv2_plan_and_preprocess"):
        FoldSlices(experiment, [experiment.train_ids[0], "nobody"])


def test_hidden_cases_are_refused(experiment):
    *kept, hidden = experiment.train_ids
    split = {"train": kept, "unlabelled": [hidden], "val": experiment.val_ids}
    (experiment.preprocessed_folder / "splits_final.json").write_text(json.dumps([split]))
    again = load_experiment(DATASET_ID, "2d", 0)
    assert hidden not in FoldSlices(again).case_ids
    with pytest.raises(UserError, match=hidden):
        FoldSlices(again, [hidden])


def test_a_fold_without_infection_is_refused(experiment):
    for case_id in experiment.train_ids:
        rewrite(experiment, case_id, lambda segmentation: segmentation.fill(0))
    with pytest.raises(UserError, match="holds a target label") as error:
        FoldSlices(experiment)
    assert "\n" not in str(error.value)


def test_index_lists_every_slice_with_a_target_and_every_slice_with_anatomy(experiment):
    tiny, empty = experiment.train_ids[:2]

    def one_pixel(segmentation):
        segmentation[:] = 0
        segmentation[0, 2, 20, 20] = 1

    rewrite(experiment, tiny, one_pixel)
    rewrite(experiment, empty, lambda segmentation: segmentation.fill(0))
    slices = FoldSlices(experiment)
    assert [origin for origin in slices.target_origins if origin[0] in (tiny, empty)] == [(tiny, 2)]
    expected = [(case_id, z) for case_id in experiment.train_ids for z in range(4)
                if (stored(experiment, case_id)[2][z] > 0).any() or (case_id, z) == (tiny, 2)]
    assert slices.origins == expected


# ----------------------------------------------------------------------------------------------------------------------
# Which pixels


def test_whole_slices_are_what_is_stored(experiment):
    found = list(FoldSlices(experiment).iterate(False))
    assert len(found) > 5
    for part in found:
        (case_id, z), = part.origin
        image, annotation, layout = stored(experiment, case_id)
        assert np.array_equal(part.image[0].numpy(), image[:, z]) and part.image.dtype == torch.float32
        assert np.array_equal(part.label[0].numpy(), np.maximum(annotation[z], 0)) and part.label.dtype == torch.int64
        assert np.array_equal(part.layout[0].numpy(), layout[z]) and part.layout.any()
        assert np.array_equal(part.valid[0].numpy(), ~reaches_the_border(annotation[z] < 0))


def reaches_the_border(mask):
    """The parts of a mask that are connected with the border."""
    parts, _ = scipy.ndimage.label(mask)
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.isin(parts, np.setdiff1d(border, 0))


def test_minus_one_and_ignore_are_background_and_not_valid(experiment):
    for file in (experiment.preprocessed_folder / "dataset.json", experiment.raw_folder / "dataset.json"):
        content = json.loads(file.read_text())
        content["labels"]["ignore"] = 2
        file.write_text(json.dumps(content))
    again = load_experiment(DATASET_ID, "2d", 0)
    case_id = again.train_ids[0]

    def change(segmentation):
        segmentation[0, :, :3] = -1
        segmentation[0, :, 5:8] = 2
        segmentation[0, :, 20:24, 20:24] = 1
        segmentation[0, :, 30, 30:33] = -1      # raw zeros amid a picture: no outside

    rewrite(again, case_id, change)
    part = CaseSlices(again.data_folder, [case_id], again.layouts_folder, again.label_manager.ignore_label).read(
        (case_id, 1))
    assert part.label.max() == 1 and not part.label[:8].any() and part.label[22, 22] == 1
    assert not part.valid[:3].any() and not part.valid[5:8].any() and part.valid[3:5].all() and part.valid[8:].all()
    assert not part.label[30, 30:33].any()


def test_labels_can_be_hidden(experiment):
    case_id = experiment.train_ids[0]
    hidden = CaseSlices(experiment.data_folder, [case_id], experiment.layouts_folder, hide_labels=True)
    assert not any(hidden.read((case_id, z)).label.any() for z in range(4))


def test_clusters_are_split_off_and_a_missing_layout_is_none(experiment):
    first, second = experiment.train_ids[:2]
    path = experiment.layouts_folder / f"{first}.b2nd"
    layout = blosc2.open(str(path))[:]
    path.unlink()
    blosc2.asarray((layout + 256 * 7).astype(np.int16), urlpath=str(path))
    (experiment.layouts_folder / f"{second}.b2nd").unlink()
    cases = CaseSlices(experiment.data_folder, [first, second], experiment.layouts_folder)
    assert np.array_equal(cases.read((first, 1)).layout, layout[1])
    assert (cases.read((first, 1)).cluster == 7).all() and not cases.read((second, 1)).cluster.any()
    assert not cases.read((second, 1)).layout.any()


def test_unlabelled_slices_are_the_pool_and_the_hidden_cases_without_their_labels(experiment):
    *kept, hidden = experiment.train_ids
    split = {"train": kept, "unlabelled": [hidden], "val": experiment.val_ids}
    (experiment.preprocessed_folder / "splits_final.json").write_text(json.dumps([split]))
    again = load_experiment(DATASET_ID, "2d", 0)
    found = list(FoldSlices(again).unlabelled().iterate(False))
    assert {part.origin[0][0] for part in found} == {hidden, *again.pool_ids} and again.pool_ids
    assert not any(part.label.any() for part in found)
    part = next(part for part in found if part.origin[0][0] == hidden)
    image, _, layout = stored(again, hidden)
    z = part.origin[0][1]
    assert np.array_equal(part.image[0].numpy(), image[:, z]) and np.array_equal(part.layout[0].numpy(), layout[z])
    drawn = FoldSlices(again).unlabelled().sample(40, (32, 32), np.random.default_rng(0))
    assert not drawn.label.any() and {case_id for case_id, _ in drawn.origin} == {hidden, *again.pool_ids}
    assert list(FoldSlices(again).unlabelled().iterate(True)) == []


def test_without_unlabelled_cases_there_are_no_unlabelled_slices(experiment):
    for image in (experiment.raw_folder / "imagesUl").iterdir():
        image.unlink()
    assert FoldSlices(load_experiment(DATASET_ID, "2d", 0)).unlabelled() is None


def test_the_cache_is_bounded_and_changes_nothing(experiment):
    roomy, tight = FoldSlices(experiment), FoldSlices(experiment, cache_bytes=50_000)
    for _ in range(2):
        for a, b in zip(roomy.iterate(False), tight.iterate(False), strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.label, b.label)
    kept = sum(part.nbytes for part in tight.cases._cache.values())
    assert 0 < kept <= 50_000 < sum(part.nbytes for part in roomy.cases._cache.values())


def test_a_cap_takes_slices_evenly():
    assert evenly(5, None) == evenly(5, 9) == [0, 1, 2, 3, 4]
    assert evenly(9, 3) == [0, 4, 8] and evenly(100, 1) == [0]
    assert len(set(evenly(1000, 64))) == 64


# ----------------------------------------------------------------------------------------------------------------------
# Random crops


def test_crops_are_reproducible_and_leave_global_random_numbers_alone(experiment):
    slices = FoldSlices(experiment)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second, other = (slices.sample(6, (32, 32), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert torch.equal(first.image, second.image) and first.origin == second.origin
    assert not torch.equal(first.image, other.image)


def test_shapes_and_types(experiment):
    part = FoldSlices(experiment).sample(3, (64, 32), np.random.default_rng(0))      # larger than the 48 × 48 slices
    assert part.image.shape == (3, 1, 64, 32)
    assert part.label.shape == part.layout.shape == part.valid.shape == (3, 64, 32)
    assert (part.image.dtype, part.label.dtype, part.layout.dtype, part.valid.dtype) == (
        torch.float32, torch.int64, torch.int64, torch.bool)
    assert not part.image[~part.valid[:, None]].any() and not part.label[~part.valid].any()


def test_half_of_the_crops_hold_a_target(experiment):
    """Where only one slice in the fold has a lesion of one pixel, chance crops would nearly never hold it."""
    for number, case_id in enumerate(experiment.train_ids):
        def change(segmentation, number=number):
            segmentation[:] = 0
            if number == 0:
                segmentation[0, 1, 5, 40] = 1
        rewrite(experiment, case_id, change)
    part = FoldSlices(experiment).sample(400, (16, 16), np.random.default_rng(0))
    from_target = sum(origin == (experiment.train_ids[0], 1) for origin in part.origin)
    held = part.label.flatten(1).any(1).float().mean()
    assert 170 < from_target < 260      # half, and a few of the uniform ones
    # Rotation and scaling (p ≈ 0.36) may lose one pixel to nearest-neighbour sampling.
    assert 0.35 < held < 0.6


def whole_slice(height=40, width=50):
    rng = np.random.default_rng(0)
    label = np.zeros((height, width), np.int16)
    label[10:20, 30:42] = 1
    layout = np.zeros_like(label)
    layout[5:35, 5:45] = 2
    image = np.where(label, 5.0, layout).astype(np.float32)[None] + rng.normal(0, 1e-3, (1, height, width))
    return SliceArrays(image.astype(np.float32), label, layout, 7 * label, np.ones(label.shape, bool))


def test_all_five_maps_move_together():
    whole = whole_slice()
    moved = 0
    for seed in range(60):
        crop = random_crop(whole, (32, 32), (15, 35), np.random.default_rng(seed))
        intensity = crop.image[0].round().astype(int)
        # Away from edges, where interpolation mixes, the intensity still names the label and the layout.
        expected = np.where(crop.label > 0, 5, crop.layout)
        agree = (intensity == expected) | ~crop.valid
        assert agree.mean() > 0.9, seed
        assert crop.label.any(), seed       # the focus is in the crop
        assert set(np.unique(crop.label)) <= {0, 1} and set(np.unique(crop.layout)) <= {0, 2}
        assert np.array_equal(crop.cluster, 7 * crop.label)
        moved += not agree.all()
    assert moved > 5        # some were really turned


def test_without_rotation_pixels_are_copied_exactly():
    whole = whole_slice()
    windows = np.lib.stride_tricks.sliding_window_view(whole.image[0], (16, 24)).reshape(-1, 16, 24)
    exact = 0
    for seed in range(30):
        crop = random_crop(whole, (16, 24), None, np.random.default_rng(seed))
        exact += any(np.array_equal(crop.image[0], np.flip(window, axes))
                     for axes in ((), (0,), (1,), (0, 1))
                     for window in windows)
    assert 12 <= exact < 30         # 0.8 · 0.8 = 64 % are neither turned nor scaled


def test_padding_is_centred_and_not_valid():
    whole = np.ones((1, 4, 6), np.float32)
    padded = _cut(whole, (-2, -1), (8, 8))
    assert padded.sum() == 24 and padded[0, 2:6, 1:7].all()
    nothing = np.zeros((4, 6), np.int16)
    crop = random_crop(SliceArrays(whole, nothing, nothing, nothing, np.ones((4, 6), bool)), (8, 8), None,
                       np.random.default_rng(2))
    assert crop.valid.sum() == 24 and np.array_equal(crop.image[0] == 1, crop.valid)


def test_every_place_can_be_cropped():
    whole = whole_slice(40, 40)
    starts = {np.argwhere(random_crop(whole, (39, 39), None, np.random.default_rng(seed)).layout > 0)[0].tolist()[0]
              for seed in range(40)}
    assert len(starts) >= 2


def test_real_fold_of_a_thread_is_the_same(experiment):
    """The training loop reads in a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor
    slices = FoldSlices(experiment, cache_bytes=60_000)
    wanted = [slices.sample(2, (32, 32), np.random.default_rng(seed)).image for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda seed: slices.sample(2, (32, 32), np.random.default_rng(seed)).image, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


