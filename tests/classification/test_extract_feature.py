"""Named layers' outputs in one file, as `extract_feature.py` writes it."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from yaml import safe_dump

from classification.extract_feature import main, write_features
from classification.inference import read_image
from internimage import InternImage
from internimage.errors import UserError

SHAPE = {"channels": 8, "depths": (1, 1, 2, 1), "groups": (1, 1, 2, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, a checkpoint of a random model, and three images, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("features")
    shape = {key.upper(): list(value) if isinstance(value, tuple) else value for key, value in SHAPE.items()}
    config = {"DATA": {"DATASET": "folder", "IMG_SIZE": 32}, "MODEL": {"TYPE": "intern_image", "INTERN_IMAGE": shape}}
    (folder / "tiny.yaml").write_text(safe_dump(config))
    torch.manual_seed(0)
    torch.save(InternImage(**SHAPE, num_classes=4).state_dict(), folder / "tiny.pth")
    (folder / "images/more").mkdir(parents=True)
    for name in ("b.png", "a.png", "more/c.jpg"):
        Image.effect_noise((32, 32), 60).save(folder / "images" / name)
    (folder / "images" / "notes.txt").write_text("not an image")
    return folder


def test_images_and_folders_are_arguments(folder, tmp_path):
    pictures, path = folder / "images", tmp_path / "features.npz"
    run(folder, pictures / "b.png", pictures / "more", "--layers", "head", "--output", path)
    with np.load(path) as features:
        assert [name.rpartition("images/")[2] for name in features["image_names"]] == ["b.png", "more/c.jpg"]


def run(folder, *options):
    main(["--cfg", f"{folder}/tiny.yaml", "--checkpoint", f"{folder}/tiny.pth", *map(str, options)])


def error_of(capsys, folder, *options):
    with pytest.raises(SystemExit) as stop:
        run(folder, *options)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_gives_one_row_per_image_in_the_order_of_their_names(folder, tmp_path):
    path = tmp_path / "features.npz"
    run(folder, "--folder", folder / "images", "--layers", "patch_embed", "head", "--output", path, "--batch-size", 2)
    with np.load(path) as features:
        assert [name.rpartition("images/")[2] for name in features["image_names"]] == ["a.png", "b.png", "more/c.jpg"]
        assert features["patch_embed"].shape == (3, 8, 8, 8)
        logits = features["head"]

    model = InternImage(**SHAPE, num_classes=4).eval()
    model.load_state_dict(torch.load(folder / "tiny.pth"))
    for name, row in zip(("a.png", "b.png", "more/c.jpg"), logits):
        pixels = np.array(read_image(folder / "images" / name), dtype=np.float32) / 255
        image = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            expected = model(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None])[0]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_all_three_formats_hold_the_same(folder, tmp_path):
    source = [
        "--image",
        folder / "images/a.png",
        folder / "images/b.png",
        "--layers",
        "levels.2.blocks.1.dcn",
        "conv_head",
    ]
    paths = [tmp_path / f"features{suffix}" for suffix in (".npz", ".pt", ".safetensors")]
    for path in paths:
        run(folder, *source, "--output", path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # no temporary file is left

    with np.load(paths[0]) as file:
        expected = {key: torch.tensor(file[key]) for key in ("levels.2.blocks.1.dcn", "conv_head")}
        names = file["image_names"].tolist()
    assert expected["levels.2.blocks.1.dcn"].shape == (2, 2, 2, 32)
    saved = torch.load(paths[1])
    assert saved.pop("image_names") == names
    torch.testing.assert_close(saved, expected)
    with safe_open(paths[2], "pt") as file:
        assert json.loads(file.metadata()["image_names"]) == names
        torch.testing.assert_close({key: file.get_tensor(key) for key in file.keys()}, expected)  # noqa: SIM118


def test_a_level_gives_its_map_and_its_downsampling_the_next_levels_input(folder, tmp_path):
    layers = "levels.0", "levels.0.downsample"
    run(folder, "--image", folder / "images/a.png", "--layers", *layers, "--output", tmp_path / "f.pt")
    features = torch.load(tmp_path / "f.pt")
    assert [features[name].shape for name in layers] == [(1, 8, 8, 8), (1, 4, 4, 16)]


def test_list_layers_needs_no_weights_and_no_memory(capsys):
    main(["--model", "internimage_g_22kto1k_512", "--list-layers"])  # 12 GB if it were built
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"patch_embed", "levels.2.blocks.47.dcn.offset", "clip_projector", "head"} <= set(names)


def test_an_unknown_layer_is_answered_with_the_nearest_names(folder, tmp_path, capsys):
    line = error_of(
        capsys,
        folder,
        "--image",
        folder / "images/a.png",
        "--layers",
        "levels.2.block.1",
        "--output",
        tmp_path / "f.pt",
    )
    assert "no layer 'levels.2.block.1'" in line
    assert "levels.2.blocks.1" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_is_said_in_one_line_and_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for suffix in (".npz", ".pt", ".safetensors"):
        path = tmp_path / f"f{suffix}"
        write_features(path, {"a": torch.ones(3)}, ["x"])
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(UserError, match=f"cannot write .*f{suffix}: .*File too large") as error:
                write_features(path, {"a": torch.ones(100_000)}, ["x"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file/features.pt"
    line = error_of(capsys, folder, "--image", folder / "none.png", "--layers", "head", "--output", output)
    assert f"cannot write {output}" in line


def test_what_is_missing_or_impossible_is_said_in_one_line(folder, tmp_path, capsys):
    image, layers = ["--image", folder / "images/a.png"], ["--layers", "head"]
    assert "give IMAGES, --layers and --output" in error_of(capsys, folder, *image, *layers)
    none = ["--output", tmp_path / "f.pt", "--batch-size", 0]
    assert "--batch-size is 0, expected at least 1" in error_of(capsys, folder, *image, *layers, *none)
    assert "must end in" in error_of(capsys, folder, *image, *layers, "--output", tmp_path / "f.txt")
    (tmp_path / "empty").mkdir()
    nothing = ["--folder", tmp_path / "empty", *layers, "--output", tmp_path / "f.pt"]
    assert "has no images" in error_of(capsys, folder, *nothing)


def test_a_layer_that_the_model_does_not_call_is_named(folder, tmp_path, capsys):
    # The blocks' list is a container: only its members run.
    line = error_of(
        capsys, folder, "--image", folder / "images/a.png", "--layers", "levels.1.blocks", "--output", tmp_path / "f.pt"
    )
    assert "'levels.1.blocks' has no output tensor" in line
