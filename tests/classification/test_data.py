"""Loaders over image folders: shapes, order, reproducibility, transforms."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import configure, epochs, fingerprint, make_folder, picture, pixels_and_labels, states
from PIL import Image
from torchvision import transforms

from classification.data import build_loaders, build_transform
from classification.data.sampler import EvalSampler, TrainSampler
from internimage.errors import UserError
from internimage.seeding import sample_seed, seed_generators


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


def test_a_batch_is_float_images_and_integer_targets(folder):
    loaders = build_loaders(configure(folder))
    images, targets = next(iter(loaders.train))
    assert (images.shape, images.dtype) == ((4, 3, 40, 40), torch.float32)
    assert (targets.shape, targets.dtype) == ((4,), torch.int64)
    assert len(list(loaders.train)) == len(loaders.train) == 24 // 4


def test_classes_come_from_the_folder(folder):
    loaders = build_loaders(configure(folder))
    assert (loaders.num_classes, loaders.class_names) == (3, ["cat", "dog", "eel"])
    assert loaders.eval_columns is None


def test_a_test_folder_is_an_evaluation_split_too(tmp_path):
    loaders = build_loaders(configure(make_folder(tmp_path, evaluation="test")))
    assert sum(len(targets) for _, targets in loaders.val) == 9


def test_imagenet_with_other_classes_uses_the_folders_and_says_so(folder, capsys):
    assert build_loaders(configure(folder, dataset="imagenet")).num_classes == 3
    assert capsys.readouterr().out.strip() == f"{folder} has 3 classes instead of 1000: the model gets as many outputs"


def test_a_class_count_that_the_folder_overrides_is_reported(folder, capsys):
    assert build_loaders(configure(folder, "MODEL.NUM_CLASSES", 7)).num_classes == 3
    assert capsys.readouterr().out.strip() == f"{folder} has 3 classes instead of 7: the model gets as many outputs"


@pytest.mark.parametrize("only_train", [True, False])
def test_without_evaluation_images_a_fifth_of_each_class_is_split_off(only_train, tmp_path, capsys):
    root = make_folder(tmp_path, train=10)
    shutil.rmtree(root / "val")
    (root / "train/eel/0.png").rename(root / "eel.png")  # 9 are left
    root = root if only_train else root / "train"
    first, again, evaluation = (build_loaders(configure(root, flags=flags)) for flags in ((), (), ("--eval",)))
    train, val = (set(loader.dataset.samples.names.tolist()) for loader in (first.train, first.val))
    assert (len(train), len(val)) == (23, 6) and not train & val and first.class_names == ["cat", "dog", "eel"]
    assert sorted(first.val.dataset.samples.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    for other in (again, evaluation):
        assert other.val.dataset.samples.names.tolist() == first.val.dataset.samples.names.tolist()
    assert f"{tmp_path / 'train'} has no evaluation images beside it: 6 of its 29, a fifth" in capsys.readouterr().out


def test_evaluation_reads_no_training_images(folder):
    loaders = build_loaders(configure(folder, flags=["--eval"]))
    assert loaders.train is None and loaders.mixup is None
    assert sum(len(targets) for _, targets in loaders.val) == 9


def test_evaluation_needs_no_training_folder(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "dog;brown")
    loaders = build_loaders(configure(tmp_path, flags=["--eval"]))
    assert loaders.class_names == ["cat", "dog;brown", "eel"]
    assert [len(targets) for _, targets in loaders.val] == [4, 4, 1]


def test_evaluation_of_a_subset_keeps_the_labels_of_the_training_classes(tmp_path):
    make_folder(tmp_path)
    for name in ("cat", "dog"):
        for image in (tmp_path / "val" / name).iterdir():
            image.unlink()
        (tmp_path / "val" / name).rmdir()
    loaders = build_loaders(configure(tmp_path, flags=["--eval"]))
    assert loaders.num_classes == 3
    assert [targets.tolist() for _, targets in loaders.val] == [[2, 2, 2]]


def test_batches_do_not_depend_on_the_number_of_workers(folder, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    alone = epochs(build_loaders(configure(folder)), 0, 1, 2)
    assert epochs(build_loaders(configure(folder, workers=1)), 0, 1, 2) == alone
    assert epochs(build_loaders(configure(folder, workers=3)), 0, 1, 2) == alone


def test_epochs_differ_and_come_back_exactly(folder):
    first, second = epochs(build_loaders(configure(folder)), 0, 1)
    assert set(first).isdisjoint(second)
    assert epochs(build_loaders(configure(folder)), 1) == [second]


def test_the_seed_changes_order_and_augmentation(folder):
    assert epochs(build_loaders(configure(folder)), 0) != epochs(build_loaders(configure(folder, "SEED", 1)), 0)


def test_augmentation_depends_on_epoch_and_index_only(folder):
    dataset = build_loaders(configure(folder)).train.dataset
    image = dataset[2, 5][0]
    dataset[2, 6]
    assert torch.equal(dataset[2, 5][0], image)
    assert not torch.equal(dataset[3, 5][0], image)
    rows, _ = dataset.__getitems__([(2, 7), (2, 5)])
    assert torch.equal(rows[1][0], image)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_callers_random_state_alone(folder, workers):
    loaders = build_loaders(configure(folder, workers=workers))
    before = states()
    list(loaders.train), list(loaders.val), loaders.train.dataset[0]
    assert states() == before


@given(st.integers(8, 60), st.sampled_from([1, 2, 4]), st.integers(0, 5))
def test_a_step_sees_the_same_samples_for_any_number_of_processes(length, processes, epoch):
    def steps(world_size):
        samplers = [TrainSampler(length, 8 // world_size, rank=r, world_size=world_size) for r in range(world_size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        orders = [list(sampler) for sampler in samplers]
        assert all(len(order) == len(sampler) for order, sampler in zip(orders, samplers))
        size = 8 // world_size
        return [sum((order[i * size : (i + 1) * size] for order in orders), []) for i in range(length // 8)]

    assert steps(processes) == steps(1)
    used = [index for step in steps(1) for _, index in step]
    assert len(set(used)) == len(used) == length // 8 * 8


@given(st.integers(0, 40), st.integers(1, 7), st.booleans())
def test_evaluation_sees_every_image_once_over_all_processes(length, world_size, sequential):
    parts = [list(EvalSampler(length, rank=r, world_size=world_size, sequential=sequential)) for r in range(world_size)]
    joined = sum(parts, [])
    assert sorted(joined) == list(range(length))
    assert not sequential or joined == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_seeds_of_neighbouring_samples_differ_in_all_generators():
    seeds = {sample_seed(seed, epoch, index) for seed in range(4) for epoch in range(4) for index in range(500)}
    assert len(seeds) == 8000 and max(seeds) < 2**63
    draws = []
    for seed in (sample_seed(0, 0, 1), sample_seed(0, 1, 0), sample_seed(0, 0, 1)):
        seed_generators(seed)
        draws.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert draws[0] == draws[2] != draws[1]


def normalised(image):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(folder):
    image = picture(1, size=(96, 64))
    ours = build_transform(configure(folder), train=False)(image)
    expected = image.resize((60, 40), Image.Resampling.BICUBIC).crop((10, 0, 50, 40))
    np.testing.assert_allclose(ours, normalised(expected), atol=1e-5)


def test_evaluation_without_crop_resizes_to_the_square(folder):
    image = picture(1, size=(96, 64))
    ours = build_transform(configure(folder, "TEST.CROP", "False"), train=False)(image)
    np.testing.assert_allclose(ours, normalised(image.resize((40, 40), Image.Resampling.BICUBIC)), atol=1e-5)


def test_normalisation_gives_the_bits_of_torchvision(folder):
    image, config = picture(1, size=(40, 40)), configure(folder)
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(config.AUG.MEAN, config.AUG.STD)])(image)
    assert torch.equal(build_transform(config, train=False)(image), expected)


PLAIN = ("AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", 0, "AUG.REPROB", 0, "AUG.CROP_SCALE", "[1, 1]")


@pytest.mark.parametrize(("horizontal", "vertical"), [(0, 0), (1, 0), (0, 1)])
def test_mirror_images_can_be_switched_off_and_on(folder, horizontal, vertical):
    flips = ("AUG.HFLIP", horizontal, "AUG.VFLIP", vertical, "AUG.CROP_RATIO", "[1, 1]")
    image = picture(1, size=(40, 40))
    expected = normalised(np.asarray(image)[:: -1 if vertical else 1, :: -1 if horizontal else 1])
    transform = build_transform(configure(folder, *PLAIN, *flips), train=True)
    for _ in range(4):
        np.testing.assert_allclose(transform(image), expected, atol=1e-5)


def test_inputs_may_be_rectangles(folder):
    config = configure(folder, "DATA.IMG_SIZE", "[24, 48]")
    image = picture(1, size=(96, 64))
    expected = image.resize((48, 32), Image.Resampling.BICUBIC).crop((0, 4, 48, 28))
    np.testing.assert_allclose(build_transform(config, train=False)(image), normalised(expected), atol=1e-5)
    images, _ = next(iter(build_loaders(config).train))
    assert images.shape == (4, 3, 24, 48)


def test_grey_inputs_have_one_channel(folder):
    config = configure(folder, "MODEL.IN_CHANS", 1, "DATA.IMG_SIZE", 32)
    images, _ = next(iter(build_loaders(config).train))
    assert images.shape == (4, 1, 32, 32)
    image = picture(1, size=(32, 32))
    expected = (np.asarray(image.convert("L")) / 255 - np.mean([0.485, 0.456, 0.406])) / np.mean([0.229, 0.224, 0.225])
    np.testing.assert_allclose(build_transform(config, train=False)(image)[0], expected, atol=1e-5)


def test_mean_and_std_are_the_configurations(folder):
    config = configure(folder, "AUG.MEAN", "[0, 0, 0]", "AUG.STD", "[1, 1, 1]", "AUG.REPROB", 0)
    for train in (True, False):
        tensor = build_transform(config, train=train)(picture(2))
        assert tensor.min() >= 0 and tensor.max() <= 1


def test_small_images_are_shifted_by_up_to_four_pixels_and_not_rescaled(folder):
    config = configure(folder, "DATA.IMG_SIZE", 32, "AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", 0, "AUG.REPROB", 0)
    image = picture(3, size=(32, 32))
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    shifts = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    candidates = np.stack([normalised(view) for shift in shifts for view in (shift, shift[:, ::-1])])
    transform = build_transform(config, train=True)
    for _ in range(5):
        difference = np.abs(candidates - transform(image).numpy()).max(axis=(1, 2, 3))
        assert difference.min() < 1e-5


def test_the_strongest_posterize_of_the_recipes_gives_black(folder):
    transform = build_transform(configure(folder, "AUG.AUTO_AUGMENT", "rand-m10-n1-inc1", "AUG.REPROB", 0), train=True)
    operation = next(op for op in transform.transforms[2].ops if op.name == "PosterizeIncreasing")
    operation.prob = 1
    assert operation(picture(4)).getextrema() == ((0, 0),) * 3


def test_an_unknown_augmentation_policy_is_named(folder):
    with pytest.raises(UserError, match="AUG.AUTO_AUGMENT is 'rnad-m9'"):
        build_loaders(configure(folder, "AUG.AUTO_AUGMENT", "rnad-m9"))


def test_mixup_is_made_for_the_folders_classes(folder):
    loaders = build_loaders(configure(folder, "AUG.MIXUP", 0.8))
    images, targets = loaders.mixup(*next(iter(loaders.train)))
    assert targets.shape == (4, 3)
    assert build_loaders(configure(folder)).mixup is None


def test_mixup_needs_an_even_batch(folder):
    with pytest.raises(UserError, match="DATA.BATCH_SIZE is 5, but mixup"):
        build_loaders(configure(folder, "AUG.MIXUP", 0.8, batch=5))


def test_a_training_set_smaller_than_a_batch_is_an_error(folder):
    with pytest.raises(UserError, match="24 images, fewer than one batch of 32"):
        build_loaders(configure(folder, batch=32))


def test_images_in_memory_give_the_same_batches(folder):
    expected = epochs(build_loaders(configure(folder)), 0, 1)
    in_memory = build_loaders(configure(folder, "DATA.IMG_ON_MEMORY", "True", workers=1))
    for path in (folder / "train").rglob("*.png"):
        path.rename(path.with_suffix(".gone"))
    try:
        assert epochs(in_memory, 0, 1) == expected
    finally:
        for path in (folder / "train").rglob("*.gone"):
            path.rename(path.with_suffix(".png"))


def test_images_that_do_not_fit_in_memory_are_read_from_disk(folder, monkeypatch, capsys):
    monkeypatch.setattr("classification.data.memory._available", lambda: 1000)
    loaders = build_loaders(configure(folder, "DATA.IMG_ON_MEMORY", "True"))
    assert "not kept in memory but read from disk" in capsys.readouterr().out
    assert epochs(loaders, 0) == epochs(build_loaders(configure(folder)), 0)


def test_evaluation_images_are_all_there_with_workers(folder):
    alone = [fingerprint(batch) for batch in build_loaders(configure(folder)).val]
    assert [fingerprint(batch) for batch in build_loaders(configure(folder, workers=2)).val] == alone
    assert len(pixels_and_labels(build_loaders(configure(folder)).val)) == 9


def test_a_class_without_validation_images_is_named(tmp_path, capsys):
    folder = make_folder(tmp_path)
    shutil.rmtree(folder / "val" / "dog")
    build_loaders(configure(folder))
    assert "1 classes have no validation images (dog)" in capsys.readouterr().out
