"""predict_onnx.py: what it imports, its pre-processing beside the frameworks', results and mistakes."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from skimage import data
from torchvision import transforms

import predict_onnx
from predict_onnx import paste_mask, prepare

SCRIPT = Path(predict_onnx.__file__)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURE = Image.fromarray(data.chelsea())


def test_it_imports_onnxruntime_numpy_pillow_and_the_standard_library_only():
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    standard = {"argparse", "collections", "colorsys", "json", "os", "pathlib", "sys", "typing"}
    assert imported - standard == {"numpy", "onnxruntime", "PIL"}


# Pre-processing


def words(resize: str, **changes: object) -> dict:
    base = {"resize": resize, "mean": MEAN, "std": STD, "size": [96, 96], "interpolation": "bicubic", "channels": "RGB"}
    return base | changes


@pytest.mark.parametrize("rule", ["shorter side, centre crop", "stretch"])
def test_classification_has_the_pixels_of_torchvision(rule):
    if rule == "stretch":
        steps = [transforms.Resize((96, 96), transforms.InterpolationMode.BICUBIC)]
    else:
        steps = [transforms.Resize(96, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(96)]
    expected = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(PICTURE)
    np.testing.assert_allclose(prepare(PICTURE, words(rule)).images[0], expected, atol=1e-5)


def test_one_mean_makes_grey_pictures():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    images, _ = predict_onnx.prepare(image, words("stretch", mean=[0.5], std=[0.25], size=[20, 30]))
    expected = (np.asarray(image.convert("L"), np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(images, expected[None, None], atol=1e-5)


def test_a_padded_picture_keeps_its_ratio_and_has_zeros_at_the_right_and_bottom():
    meta = words("keep ratio, pad to multiple", scale=[200, 120], multiple=32, interpolation="opencv bilinear")
    images, size = prepare(PICTURE, meta)  # 451 x 300
    assert size == (180, 120) and images.shape == (1, 3, 128, 192)
    assert (images[..., 120:, :] == 0).all() and (images[..., 180:] == 0).all()
    assert (images[..., :120, :180] != 0).all()


def test_a_stretched_picture_fills_the_next_multiple():
    meta = words("keep ratio, stretch to multiple", scale=[2048, 120], multiple=32, interpolation="opencv bilinear")
    images, size = prepare(PICTURE, meta)
    assert images.shape == (1, 3, 128, 192) and size == (192, 128)


@pytest.mark.parametrize("end", ["pad", "stretch"])
def test_a_static_model_gets_its_size(end):
    meta = words(f"keep ratio, {end} to multiple", scale=[2048, 512], multiple=32, interpolation="opencv bilinear")
    images, size = prepare(PICTURE, meta, fixed=(64, 160))
    assert images.shape == (1, 3, 64, 160) and size == ((96, 64) if end == "pad" else (160, 64))


def test_resizing_is_opencvs_to_one_grey_level():
    cv2 = pytest.importorskip("cv2")
    for size in ((100, 70), (900, 600), (451, 31)):
        expected = cv2.resize(data.chelsea(), size, interpolation=cv2.INTER_LINEAR).astype(int)
        actual = np.asarray(predict_onnx._resize(PICTURE, size, "opencv bilinear"))
        assert np.abs(actual - expected).max() <= 1


def test_channels_may_be_the_other_way_round():
    meta = words("stretch", mean=(0, 0, 0), std=(1, 1, 1))
    forward, back = prepare(PICTURE, meta).images, prepare(PICTURE, meta | {"channels": "BGR"}).images
    assert np.array_equal(forward[:, ::-1], back)


def test_a_pasted_mask_is_grid_samples():
    mask = np.random.default_rng(0).random((28, 28), np.float32)
    box = np.array([-3.5, 10.2, 60.3, 41.7])
    x = (np.arange(80) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (np.arange(50) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1)[None]).float()
    expected = torch.nn.functional.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)
    np.testing.assert_allclose(paste_mask(mask, box, 80, 50), expected[0, 0], atol=1e-5)


# Results


def write_classifier(path: Path, **metadata: str) -> Path:
    """A file whose logits are the means of the three channels."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "means", [images], [logits], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.fixture
def classifier(tmp_path):
    meta = words("stretch", mean=(0, 0, 0), std=(0.1, 0.1, 0.1), class_names=["red", "green", "blue"])
    meta = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    return write_classifier(tmp_path / "model.onnx", task="classification", **meta)


def test_a_classifier_names_the_likeliest_classes_first(classifier, tmp_path, capsys):
    Image.new("RGB", (50, 40), (10, 250, 120)).save(tmp_path / "green.png")
    predict_onnx.main([str(classifier), str(tmp_path / "green.png"), "--out", str(tmp_path / "out.png")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["green", "blue", "red"]
    assert float(lines[0].split("%")[0]) > 90
    picture = np.asarray(Image.open(tmp_path / "out.png"))  # enlarged, with a line for each class
    assert picture.shape == (240, 300, 3)
    rows = (picture != (10, 250, 120)).any((1, 2))
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == 3


def test_a_reader_that_has_read_enough_is_no_mistake(classifier, tmp_path):
    PICTURE.save(tmp_path / "photo.png")
    for unbuffered in ("", "1"):
        command = [sys.executable, str(SCRIPT), str(classifier), str(tmp_path / "photo.png")]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        ) as process:
            process.stdout.close()
            assert process.stderr.read() == b"" and process.wait() == 0


@pytest.mark.parametrize("case", ["no model", "no image", "not an image", "another kind", "no folder"])
def test_mistakes_end_in_one_line(case, classifier, tmp_path, capsys):
    PICTURE.save(tmp_path / "photo.png")
    (tmp_path / "text").write_text("neither")
    model = {"no model": "none.onnx", "another kind": tmp_path / "text"}.get(case, classifier)
    image = {"no image": "none.jpg", "not an image": tmp_path / "text"}.get(case, tmp_path / "photo.png")
    out = ["--out", str(tmp_path / "none" / "out.png")] if case == "no folder" else []
    with pytest.raises(SystemExit) as stop:
        predict_onnx.main([str(model), str(image), *out])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


# Damaged models


def bytes_of(change) -> object:
    """A damage to the file's bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def graph_of(change) -> object:
    """A damage to the model."""

    def damage(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return damage


def metadata(**changes: str | None) -> object:
    """Other metadata; None removes one."""

    def change(model) -> None:
        props = {item.key: item.value for item in model.metadata_props} | changes
        helper.set_model_props(model, {key: value for key, value in props.items() if value is not None})

    return graph_of(change)


def input_shape(*sizes: int) -> object:
    def change(model) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, sizes))

    return graph_of(change)


def weights_beside(model) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="missing.data")
    model.graph.initializer[0].ClearField("int64_data")


def flipped(data: bytes, seed: int) -> bytes:
    """Sixteen bytes of the graph, which is at the beginning, changed."""
    broken = bytearray(data)
    for place in np.random.default_rng(seed).integers(0, 120, 16):
        broken[place] ^= 0xFF
    return bytes(broken)


DAMAGES = {
    "empty": bytes_of(lambda data: b""),
    "text": bytes_of(lambda data: b"This is no model.\n" * 9),
    "a picture": bytes_of(lambda data: b"\x89PNG\r\n\x1a\n" + bytes(200)),
    "a Git LFS pointer": bytes_of(lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
    "zeros": bytes_of(lambda data: bytes(len(data))),
    **{f"cut to {share:.0%}": bytes_of(lambda data, s=share: data[: int(s * len(data))]) for share in (0.1, 0.5, 0.9)},
    **{f"flipped bytes, {seed}": bytes_of(lambda data, s=seed: flipped(data, s)) for seed in range(4)},
    "no metadata": graph_of(lambda model: model.ClearField("metadata_props")),
    "another task": metadata(task="poetry"),
    **{f"no {key}": metadata(**{key: None}) for key in ("task", "mean", "std", "resize", "interpolation", "size")},
    "half of a JSON text": metadata(mean="[0.485, 0.4"),
    "two means": metadata(mean="[0.5, 0.5]"),
    "no spread": metadata(std="[0, 0, 0]"),
    "no number as mean": metadata(mean="[NaN, 0, 0]"),
    "words for a size": metadata(size='"large"'),
    "a huge size": metadata(size="[1000000, 1000000]"),
    "a negative size": metadata(size="[-5, 96]"),
    "an unknown rule": metadata(resize="fold"),
    "an unknown interpolation": metadata(interpolation="magic"),
    "a threshold of words": metadata(threshold="high"),
    "the classes of a number": metadata(class_names="7"),
    "another task's outputs": metadata(task="detection"),
    "a huge fixed size": input_shape(1, 3, 10**6, 10**6),
    "a huge batch": input_shape(10**9, 3, 96, 96),
    "an input of rank 2": input_shape(1, 3),
    "no input": graph_of(lambda model: model.graph.ClearField("input")),
    "an input of another name": graph_of(lambda model: setattr(model.graph.input[0], "name", "x")),
    "no output": graph_of(lambda model: model.graph.ClearField("output")),
    "an output of another name": graph_of(lambda model: setattr(model.graph.output[0], "name", "x")),
    "an unknown operator": graph_of(lambda model: setattr(model.graph.node[0], "op_type", "Magic")),
    "an operator of another domain": graph_of(lambda model: setattr(model.graph.node[0], "domain", "ops_dcnv3")),
    "a future opset": graph_of(lambda model: setattr(model.opset_import[0], "version", 9999)),
    "weights that are missing": graph_of(weights_beside),
    "weights of a huge shape": graph_of(lambda model: model.graph.initializer[0].dims.extend([2**40])),
    "scores that are no numbers": graph_of(lambda model: setattr(model.graph.node[0], "op_type", "ReduceLogSum")),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_ends_in_one_line_that_names_it(damage, classifier, tmp_path, capfd):
    Image.new("RGB", (50, 40)).save(tmp_path / "black.png")
    DAMAGES[damage](classifier)
    with pytest.raises(SystemExit) as stop:
        predict_onnx.main([str(classifier), str(tmp_path / "black.png")])
    error = capfd.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    assert error.startswith(f"error: {classifier} cannot be used: ") and "export the model again" in error
    assert ("NaN or infinite values" in error) == (damage in ("scores that are no numbers", "no number as mean"))
