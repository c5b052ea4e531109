"""The layouts of data on disk: lists, zip archives, ImageNet-22K, iNaturalist 2018."""

import json
import math
import shutil
import zipfile

import fsspec
import pytest
import torch
from image_folders import configure, epochs, fingerprint, make_folder, picture
from timm.data import ImageNetInfo

from classification.data import build_loaders
from classification.data.inaturalist import spatial_vector, temporal_vector
from internimage.errors import UserError

CLASSES = {"cat": 0, "dog": 1, "eel": 2}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


def listing(folder, split, separator, prefix=""):
    """Lines `path label` in the order of the folder's own loader."""
    paths = sorted((folder / split).rglob("*.png"))
    relative = [path.relative_to(folder / split) for path in paths]
    return [f"{prefix}{path.as_posix()}{separator}{CLASSES[path.parts[0]]}" for path in relative]


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def make_zip(folder, root, compression):
    root.mkdir()
    for split in ("train", "val"):
        with zipfile.ZipFile(root / f"{split}.zip", "w", compression) as archive:
            for path in sorted((folder / split).rglob("*.png")):
                archive.write(path, path.relative_to(folder / split))
        write_lines(root / f"{split}_map.txt", listing(folder, split, "\t"))
    return root


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("cache_mode", ["no", "part", "full"])
def test_a_zip_gives_the_same_batches_as_the_folder(folder, tmp_path, compression, cache_mode):
    root = make_zip(folder, tmp_path / "zip", compression)
    zipped = build_loaders(configure(root, workers=2, flags=["--zip", "--cache-mode", cache_mode]))
    plain = build_loaders(configure(folder))
    assert epochs(zipped, 0, 1) == epochs(plain, 0, 1)
    assert [fingerprint(batch) for batch in zipped.val] == [fingerprint(batch) for batch in plain.val]
    assert zipped.class_names == plain.class_names


def test_a_zip_that_lacks_a_listed_image_is_an_error(folder, tmp_path):
    root = make_zip(folder, tmp_path / "zip", zipfile.ZIP_STORED)
    with open(root / "train_map.txt", "a") as file:
        file.write("cat/none.png\t0\n")
    with pytest.raises(UserError, match="has no entry cat/none.png"):
        build_loaders(configure(root, flags=["--zip"]))


def test_a_truncated_zip_is_an_error(folder, tmp_path):
    root = make_zip(folder, tmp_path / "zip", zipfile.ZIP_STORED)
    (root / "val.zip").write_bytes((root / "val.zip").read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot read .*val.zip"):
        build_loaders(configure(root, flags=["--zip"]))


def test_zip_mode_names_the_files_that_it_expects(folder):
    with pytest.raises(UserError, match="no file .*train.zip; --zip expects"):
        build_loaders(configure(folder, flags=["--zip"]))


@pytest.mark.parametrize("where", ["meta_data", "meta"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_list_files_give_the_same_batches_as_the_folder(folder, where, separator):
    expected = epochs(build_loaders(configure(folder)), 0)
    for split in ("train", "val"):
        write_lines(folder / where / f"{split}.txt", listing(folder, split, separator))
    loaders = build_loaders(configure(folder))
    assert epochs(loaders, 0) == expected
    assert (loaders.num_classes, loaders.class_names) == (3, ["cat", "dog", "eel"])


def test_a_list_may_label_a_flat_folder(folder):
    """ImageNet's validation images as they are distributed: 50,000 files in one folder."""
    lines = []
    for i, path in enumerate(sorted((folder / "val").rglob("*.png"))):
        path.rename(folder / "val" / f"{i}.png")
        lines.append(f"{i}.png {i % 3}")
    write_lines(folder / "meta_data" / "val.txt", lines)
    batches = list(build_loaders(configure(folder)).val)
    assert torch.cat([targets for _, targets in batches]).tolist() == [0, 1, 2] * 3


def test_a_list_of_imagenet_means_a_thousand_classes(folder):
    for split in ("train", "val"):
        write_lines(folder / "meta" / f"{split}.txt", listing(folder, split, " "))
    assert build_loaders(configure(folder, dataset="imagenet")).num_classes == 1000


def test_lists_may_be_in_zip_archives_of_their_names(folder):
    expected = epochs(build_loaders(configure(folder)), 0)
    for split in ("train", "val"):
        (folder / "meta_data").mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / "meta_data" / f"{split}.txt.zip", "w") as archive:
            archive.writestr(f"{split}.txt", "\n".join(listing(folder, split, " ")))
    assert epochs(build_loaders(configure(folder)), 0) == expected
    with zipfile.ZipFile(folder / "meta_data" / "val.txt.zip", "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(UserError, match="cannot read .*val.txt.zip: .*zip.val.txt; expected lines"):
        build_loaders(configure(folder))


def test_the_list_of_imagenet_22k_has_names_that_a_file_beside_it_numbers(folder):
    (folder / "train").rename(folder / "fall11_whole")
    names = {value: key for key, value in CLASSES.items()}
    lines = [line.split() for line in listing(folder, "fall11_whole", " ")]
    write_lines(folder / "meta_data" / "22k_label.txt", [f"{path} {names[int(label)]}" for path, label in lines])
    write_lines(folder / "meta_data" / "val.txt", listing(folder, "val", " "))
    with pytest.raises(UserError, match="cannot read .*22k_class_to_idx.json"):
        build_loaders(configure(folder, dataset="imagenet22K"))
    (folder / "meta_data" / "22k_class_to_idx.json").write_text(json.dumps(CLASSES))
    loaders = build_loaders(configure(folder, dataset="imagenet22K"))
    assert loaders.train.dataset.samples.labels.tolist() == [int(label) for _, label in lines]
    assert loaders.num_classes == 21841


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_lists_come_from_any_store_of_fsspec(folder, workers):
    expected = epochs(build_loaders(configure(folder)), 0)
    store, url = fsspec.filesystem("memory"), f"memory://{folder.name}-{workers}"
    for split in ("train", "val"):
        write_lines(folder / "meta_data" / f"{split}.txt", listing(folder, split, " ", prefix=f"{split}/"))
        for path in (folder / split).rglob("*.png"):
            store.pipe_file(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        shutil.rmtree(folder / split)
    loaders = build_loaders(configure(folder, "DATA.IMAGES_URL", url, workers=workers))
    assert epochs(loaders, 0) == expected
    store.rm(loaders.train.dataset.samples.name(0))
    with pytest.raises(UserError, match=f"cannot read image {url}/train/cat/0.png"):
        epochs(build_loaders(configure(folder, "DATA.IMAGES_URL", url)), 0)


def test_a_store_that_is_not_known_and_images_without_lists_are_errors(folder):
    with pytest.raises(UserError, match="needs the lists .*meta_data/train.txt"):
        build_loaders(configure(folder, "DATA.IMAGES_URL", "s3://bucket"))
    for split in ("train", "val"):
        write_lines(folder / "meta_data" / f"{split}.txt", listing(folder, split, " "))
    with pytest.raises(UserError, match="cannot open DATA.IMAGES_URL petrel://bucket"):
        build_loaders(configure(folder, "DATA.IMAGES_URL", "petrel://bucket"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat/0.png cat", "expected lines of `path label`"),
        ("cat/0.png", "expected lines of `path label`"),
        ("cat/0.png -1", "labels count from 0"),
        ("cow/0.png 0", "lists cow/0.png, which is not in"),
    ],
)
def test_a_bad_list_is_named(folder, line, message):
    write_lines(folder / "meta" / "train.txt", [line])
    with pytest.raises(UserError, match=message):
        build_loaders(configure(folder))


def test_a_label_beyond_the_data_set_is_an_error(folder):
    for split in ("train", "val"):
        write_lines(folder / "meta" / f"{split}.txt", ["cat/0.png 1000"])
    with pytest.raises(UserError, match="label 1000, imagenet has 1000 classes"):
        build_loaders(configure(folder, dataset="imagenet"))


def test_imagenet_22k_reads_its_published_lists(folder):
    (folder / "train").rename(folder / "fall11_whole")
    lines = listing(folder, "fall11_whole", " ", prefix="fall11_whole/")
    pairs = [[line.split()[0], int(line.split()[1])] for line in lines]
    (folder / "ILSVRC2011fall_whole_map_train.txt").write_text(json.dumps(pairs))
    (folder / "ILSVRC2011fall_whole_map_val.txt").write_text(json.dumps(pairs[:5]))
    loaders = build_loaders(configure(folder, dataset="imagenet22K"))
    assert loaders.num_classes == 21841
    assert sum(len(targets) for _, targets in loaders.val) == 5
    assert loaders.class_names[:4] == ["cat", "dog", "eel", "3"]


def test_imagenet_22k_reads_class_folders(folder, capsys):
    (folder / "train").rename(folder / "fall11_whole")
    assert build_loaders(configure(folder, dataset="imagenet22K")).num_classes == 3
    assert "3 classes instead of 21841" in capsys.readouterr().out


def test_a_22k_model_is_evaluated_on_the_columns_of_the_1k_classes(tmp_path):
    synsets = ImageNetInfo("imagenet1k").label_names()
    make_folder(tmp_path, classes=(synsets[7], synsets[993]), train=0)
    loaders = build_loaders(configure(tmp_path, "EVAL_22K_TO_1K", "True", flags=["--eval"]))
    assert loaders.num_classes == 21841
    assert torch.cat([targets for _, targets in loaders.val]).tolist() == [7] * 3 + [993] * 3
    of_22k = ImageNetInfo("imagenet22k").label_names()
    assert [of_22k[loaders.eval_columns[i]] for i in (7, 993)] == [synsets[7], synsets[993]]


def test_22k_evaluation_needs_folders_named_by_synset(folder):
    with pytest.raises(UserError, match="not named as ImageNet-1K's"):
        build_loaders(configure(folder, "EVAL_22K_TO_1K", "True", flags=["--eval"]))


def make_inat18(root):
    """Three categories whose ids are not their positions; the image 102 has no place, 103 no date."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images = [{"id": 100 + i, "file_name": f"{split}/{i}.png"} for i in range(4)]
        for i in range(4):
            picture(i).save(root / split / f"{i}.png")
        annotations = {
            "images": images,
            "annotations": [{"image_id": 100 + i, "category_id": (30, 10, 20, 30)[i]} for i in (3, 0, 1, 2)],
            "categories": [{"id": 30, "name": "c"}, {"id": 10, "name": "a"}, {"id": 20, "name": "b"}],
        }
        places = [
            {"id": 100, "lat": 0.5, "lon": 90.0, "date": "2017-03-05 12:00:00+00:00", "loc_uncert": 1},
            {"id": 101, "lat": 90.0, "lon": 12.0, "date": "2017-12-31", "loc_uncert": None},
            {"id": 102, "lat": None, "lon": None, "date": "2017-06-01", "loc_uncert": None},
            {"id": 103, "lat": -90.0, "lon": 5.0, "date": None, "loc_uncert": None},
        ]
        (root / f"{split}2018.json").write_text(json.dumps(annotations))
        (root / f"{split}2018_locations.json").write_text(json.dumps(places))
    return root


def test_inat18_batches_carry_time_and_place(tmp_path):
    loaders = build_loaders(configure(make_inat18(tmp_path), dataset="inat18"))
    assert (loaders.num_classes, loaders.class_names) == (3, ["c", "a", "b"])
    images, targets, temporal, spatial = next(iter(loaders.val))
    assert targets.tolist() == [0, 0, 1, 2]  # images 103, 100, 101, 102
    assert temporal.dtype == spatial.dtype == torch.float32
    torch.testing.assert_close(temporal, torch.tensor([[0.0] * 4, [1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]]))
    assert spatial.shape == (4, 3)
    torch.testing.assert_close(spatial[:, 2], torch.tensor([-1.0, math.sin(math.radians(0.5)), 1, 0]))
    assert len(next(iter(loaders.train))) == 4


def test_place_is_a_unit_vector_and_zero_where_missing():
    assert math.isclose(math.hypot(*spatial_vector(48.1, 11.6)), 1)
    assert spatial_vector(45.0, 90.0) == pytest.approx((0, math.sqrt(0.5), math.sqrt(0.5)))
    assert spatial_vector(None, 3.0) == spatial_vector(3.0, 0.0) == spatial_vector(0.0, 3.0) == (0, 0, 0)


def test_month_is_on_the_circle_and_zero_where_missing():
    assert temporal_vector("2015-01-20 10:00:00") == pytest.approx((0.5, math.sqrt(0.75), 0, 0))
    assert temporal_vector(None) == temporal_vector("unknown") == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val2018.json", None, "val2018.json: No such file"),
        ("val2018.json", "{", "is not valid JSON"),
        ("val2018.json", "{}", "lacks 'categories'"),
        ("val2018_locations.json", '[{"lat": 1}]', "lacks 'id'"),
    ],
)
def test_bad_annotations_are_named(tmp_path, name, content, message):
    path = make_inat18(tmp_path) / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        build_loaders(configure(tmp_path, dataset="inat18"))
