"""Images of every kind, results of every task, and the files that hold them."""

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import internimage
from internimage.__main__ import main
from internimage.errors import CheckpointError, UserError
from internimage.model_source import find_config, find_model
from internimage.predictions import PredictionFiles
from internimage.predictor import choose_device
from internimage.results import ClassificationResult, DetectionResult, SegmentationResult, cjk_font
from internimage.sources import iter_images

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "b.png")
    Image.fromarray(PIXELS).save(tmp_path / "deeper" / "a.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def write_video(path, frames=3):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), (0, 0, 80 * index), np.uint8))  # BGR
    writer.release()
    return path


# Images


def test_files_folders_patterns_and_lists_give_their_images_in_order(folder):
    def names(images):
        return [picture.source.removeprefix(f"{folder}/") for picture in iter_images(images)]

    assert names(folder / "b.png") == names(f"{folder}/*.png") == ["b.png"]
    assert names(folder) == ["b.png", "deeper/a.PNG"]
    assert names([folder / "deeper", f"{folder}/b.png"]) == ["deeper/a.PNG", "b.png"]


def test_arrays_tensors_and_pillow_images_give_the_same_pixels(folder):
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for images in (PIXELS, Image.fromarray(PIXELS), tensor, tensor / 255, folder / "b.png"):
        (picture,) = iter_images(images)
        assert np.array_equal(picture.image, PIXELS)
    two = list(iter_images([tensor[None], PIXELS[..., 0]]))
    assert [picture.source for picture in two] == ["image 0", "image 1"]
    assert np.array_equal(np.asarray(two[1].image)[..., 2], PIXELS[..., 0])


def test_a_video_gives_its_frames_in_rgb(tmp_path):
    frames = list(iter_images(write_video(tmp_path / "clip.mp4")))
    assert [frame.frame for frame in frames] == [0, 1, 2]
    red, _, blue = np.asarray(frames[2].image).mean((0, 1))
    assert red > 130 and blue < 30


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("none.jpg", "no image at none.jpg"),
        ("*.xyz", "no file matches"),
        (5, "int is not an image"),
        (np.zeros((4, 4, 3)), "must be (H, W, 3), RGB uint8"),
        (torch.randn(3, 8, 8), "values from 0 to 1"),
        (torch.zeros(4, 8), "must be (3, H, W)"),
        ("http://127.0.0.1:9/x.png", "cannot download http://127.0.0.1:9/x.png"),
        ("none.mp4", "no video at none.mp4"),
    ],
)
def test_what_is_no_image_is_said(images, words):
    with pytest.raises(UserError) as error:
        list(iter_images(images))
    assert words in str(error.value)


def test_a_text_file_is_reported_and_the_other_images_are_read(folder):
    errors = []
    found = list(iter_images([folder / "notes.txt", folder], errors.append))
    assert len(found) == 2
    assert "notes.txt cannot be read as an image" in str(errors[0])
    write_video(folder / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        list(iter_images(folder / "clip.mp4"))


# Results

MASKS = np.zeros((2, 20, 30), bool)
MASKS[0, 5:10, 3:8] = MASKS[1, 12:, 20:] = True


def results(frame=None):
    return {
        "classification": ClassificationResult(
            PIXELS, "a/x.png", np.array([2, 0]), np.array([0.9, 0.1], np.float32), ["cat", "ant"], frame=frame
        ),
        "detection": DetectionResult(
            *(PIXELS, "b/x.png", np.array([[3, 5, 8, 10], [20, 12, 30, 20]], np.float32)),
            *(np.array([0.9, 0.5], np.float32), np.array([0, 1]), ["red", "green"], MASKS, [(255, 0, 0)]),
            frame=frame,
        ),
        "segmentation": SegmentationResult(
            PIXELS, "c/y.png", MASKS[0] + 2 * MASKS[1].astype(np.int64), ["ground", "red", "green"], frame=frame
        ),
    }


def test_masks_in_json_are_those_that_pycocotools_reads():
    coco = pytest.importorskip("pycocotools.mask")
    objects = json.loads(results()["detection"].to_json())["objects"]
    assert [item["name"] for item in objects] == ["red", "green"]
    for item, mask in zip(objects, MASKS):
        assert np.array_equal(coco.decode(coco.frPyObjects(item["mask"], 20, 30)), mask)
    classes = json.loads(results()["segmentation"].to_json())["classes"]
    assert [(item["name"], item["pixels"]) for item in classes] == [("ground", 495), ("red", 25), ("green", 80)]
    for item, label in zip(classes, range(3)):
        mask = results()["segmentation"].labels == label
        assert np.array_equal(coco.decode(coco.frPyObjects(item["mask"], 20, 30)), mask)


def test_pictures_show_masks_and_boxes_in_the_colours_of_the_palette():
    image, masks = np.full((200, 200, 3), 100, np.uint8), np.zeros((1, 200, 200), bool)
    masks[0, 150:180, 100:150] = True
    parts = np.array([[20, 50, 180, 190]], np.float32), np.ones(1, np.float32), np.array([1]), ["red"], masks
    picture = np.asarray(DetectionResult(image, "", *parts, [(0, 0, 0), (255, 0, 0)]).plot())
    assert picture[190, 100].tolist() == [255, 0, 0]  # the edge of the box
    assert picture[160, 120].tolist() == [177, 50, 50]  # half of the palette's red
    assert (image == 100).all()  # unchanged
    small = results()
    for result in small.values():
        assert result.plot().size == (300, 200) and result.summary()  # enlarged, for the text
    small["segmentation"].labels[0] = 255  # ignored
    assert [label for label, _, _ in small["segmentation"]._present()] == [0, 1, 2]
    assert np.asarray(small["detection"].plot())[90, 80].tolist() == [255, 0, 0]  # the edge of the first box


def test_the_label_of_the_highest_score_is_on_top_and_labels_avoid_each_other(monkeypatch):
    written = []
    monkeypatch.setattr("internimage.results._write", lambda image, place, text: written.append((text, *place)))
    boxes = np.array([[100, 50, 300, 300]] * 4 + [[104, 52, 300, 300]], np.float32)
    scores, labels = np.linspace(0.9, 0.5, 5, dtype=np.float32), np.zeros(5, int)
    DetectionResult(np.zeros((400, 400, 3), np.uint8), "", boxes, scores, labels, ["red"] * 5).plot()
    texts, x, y = zip(*written)
    assert texts == ("red 50%", "red 60%", "red 70%", "red 80%", "red 90%")
    assert len({*zip(x, y)}) == 5 and (x[4], y[4]) == (102, 50) and (x[3], y[3] > 250) == (102, True)


def test_the_name_of_a_class_lies_inside_its_region(monkeypatch):
    written = {}
    monkeypatch.setattr("internimage.results._write", lambda image, place, text: written.update({text: place}))
    labels = np.zeros((400, 400), int)
    labels[:, 100:] = 1
    labels[150:, 150:] = 2  # what is left of class 1 is an angle
    SegmentationResult(np.zeros((400, 400, 3), np.uint8), "", labels, ["aa", "bb", "cc"]).plot()
    for name, (x, y) in written.items():
        assert labels[round(y) + 9, round(x) + 9] == ["aa", "bb", "cc"].index(name)
    assert written["bb"][1] < 130 < written["cc"][0]


def test_chinese_names_are_drawn_with_a_font_that_has_them():
    if not cjk_font():
        pytest.skip("no font with Chinese letters is installed")
    names, image = ["狗", "猫"], np.zeros((200, 200, 3), np.uint8)
    dog, cat = (ClassificationResult(image, "", np.zeros(1, int), np.ones(1), [name]).plot() for name in names)
    assert dog.tobytes() != cat.tobytes()  # a font without them draws the same box for both


def test_supervision_gets_boxes_masks_scores_and_names(monkeypatch):
    fake = SimpleNamespace(Detections=lambda **parts: parts, Classifications=lambda **parts: parts)
    monkeypatch.setitem(sys.modules, "supervision", fake)
    found = results()["detection"].to_supervision()
    assert found["xyxy"].shape == (2, 4) and found["mask"] is MASKS and found["class_id"].tolist() == [0, 1]
    assert found["data"]["class_name"].tolist() == ["red", "green"]
    classes = results()["segmentation"].to_supervision()
    assert classes["xyxy"].tolist() == [[0, 0, 30, 20], [3, 5, 8, 10], [20, 12, 30, 20]]
    assert classes["mask"].sum() == PIXELS.shape[0] * PIXELS.shape[1]
    assert results()["classification"].to_supervision()["class_id"].tolist() == [2, 0]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        results()["detection"].to_supervision()


def test_files_of_the_same_name_do_not_overwrite_each_other_and_an_interruption_loses_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), PredictionFiles(tmp_path / "new") as files:
        for result in results().values():
            files.add(result)
        raise KeyboardInterrupt
    entries = json.loads((tmp_path / "new/predictions.json").read_text())
    assert [entry["picture"] for entry in entries] == ["x.jpg", "x_2.jpg", "y.jpg"]
    assert all(Image.open(tmp_path / "new" / entry["picture"]).size == (300, 200) for entry in entries)
    with open(tmp_path / "new/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["picture"], row["name"]) for row in rows[:4]] == [
        *(("x.jpg", "cat"), ("x.jpg", "ant"), ("x_2.jpg", "red"), ("x_2.jpg", "green"))
    ]
    assert [rows[3][key] for key in ("score", "x1", "y1", "x2", "y2", "frame")] == [
        "0.5",
        "20.0",
        "12.0",
        "30.0",
        "20.0",
        "",
    ]
    assert [row["pixels"] for row in rows[4:]] == ["495", "25", "80"]
    with pytest.raises(UserError, match="cannot write to"):
        PredictionFiles(tmp_path / "new" / "x.jpg")


def test_the_frames_of_a_video_become_a_video_of_the_same_rate(tmp_path):
    cv2 = pytest.importorskip("cv2")
    source = str(write_video(tmp_path / "clip.mp4"))
    with PredictionFiles(tmp_path / "new") as files:
        for picture in iter_images(source):
            pixels = np.asarray(picture.image)
            files.add(SegmentationResult(pixels, source, np.zeros((48, 64), int), ["all"], frame=picture.frame))
    written = cv2.VideoCapture(str(tmp_path / "new/clip.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and written.get(cv2.CAP_PROP_FPS) == 8
    entries = json.loads((tmp_path / "new/predictions.json").read_text())
    assert [entry["frame"] for entry in entries] == [0, 1, 2]


# Names, and the command


def test_every_released_name_has_its_weights_and_its_configuration(monkeypatch):
    monkeypatch.setattr("internimage.model_source.local_checkpoint", lambda name: name)
    for release in internimage.zoo.releases():
        if release.checkpoint:
            found = find_model(release.name)
            assert found.checkpoint == release.name
            assert found.config.is_file() if release.config else found.classifier
        for config in release.config.split():
            assert str(find_config(config.rpartition("/")[2].rpartition(".")[0]).config).endswith(config)


def test_a_wrong_name_suggests_near_ones_and_a_checkpoint_without_configuration_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="did you mean mask_rcnn_internimage_t_fpn_1x_coco"):
        internimage.load("mask_rcnn_internimage_t_fpn_1x_coc")
    with pytest.raises(UserError, match="has no released weights; give a checkpoint"):
        internimage.load("mask_rcnn_internimage_demo")
    with pytest.raises(UserError, match="is a configuration; give the checkpoint"):
        internimage.load("own.py")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="give its configuration as well .config=FILE in Python, --config FILE"):
        internimage.load(tmp_path / "bare.pth")
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used"):
        choose_device("cuda:99")


def test_flops_of_a_model_are_the_published_ones():
    with torch.device("meta"):
        model = internimage.create_model("internimage_t_1k_224")
    assert internimage.flops(model, (448, 224)) == pytest.approx(2 * 5e9, rel=0.03)


def test_the_command_lists_its_commands_and_says_which_backends_run(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in ("predict", "train", "evaluate", "export", "models", "flops"))
    main(["doctor"])
    main(["models"])
    printed = capsys.readouterr().out
    assert "auto uses" in printed and "mask_rcnn_internimage_t_fpn_1x_coco" in printed
    with pytest.raises(SystemExit) as stop:
        main(["predict", "x.png"])
    assert stop.value.code == 2
    assert "one of the arguments --model --checkpoint is required" in capsys.readouterr().err
