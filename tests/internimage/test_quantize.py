"""int8: which layers are quantised, what it costs, and how mistakes are reported."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from internimage import InternImage
from internimage.errors import UserError
from internimage.export import onnx as onnx_format
from internimage.export.accuracy import Accuracy, accuracy_table, measure_accuracy
from internimage.export.exportable import Exportable, Logits
from internimage.export.quantize import linear_layers, quantize_onnx, sampling_layers, write_int8
from ops_dcnv3 import DCNv3

BLOCKS = 1


@pytest.fixture(scope="module")
def item() -> Exportable:
    torch.manual_seed(0)
    model = InternImage(channels=64, depths=[1], groups=[2], num_classes=5)
    for module in model.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.weight, std=0.1)
            nn.init.normal_(module.mask.weight, std=0.1)
    images = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    labels = Logits(model).eval()(torch.cat(images))[0].argmax(1)
    return Exportable(
        Logits(model).eval(),
        ("logits",),
        (32, 32),
        {"task": "classification"},
        images[:1],
        calibration=images,
        labelled=lambda: [(torch.cat(images), labels)],
    )


@pytest.fixture(scope="module", params=["grid_sample", "deform_conv"])
def source(request, item: Exportable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    onnx_format.write(item, path, core=request.param)
    return path


def test_offset_and_mask_projections_stay_in_float32(source: Path) -> None:
    graph = onnx.load(source).graph
    assert len(sampling_layers(graph)) == 2 * BLOCKS
    layers = linear_layers(graph)
    assert len(layers) == 4 * BLOCKS  # value and output projection, two of the MLP; not the classifier
    assert not set(layers) & sampling_layers(graph)


def test_int8_stays_close_keeps_metadata_and_shrinks(source: Path, item: Exportable, tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    write_int8(item, source, path, core="unused")
    images = item.calibration[0]
    expected = item.reference(images)[0]
    error = (torch.from_numpy(onnx_format.load(path, threads=1)(images.numpy())[0]) - expected).abs().max()
    assert 0 < error < 0.05 * expected.abs().max()
    assert path.stat().st_size < 0.7 * source.stat().st_size
    assert {"task"} <= {entry.key for entry in onnx.load(path).metadata_props}


def test_openvino_takes_the_same_int8_layers(item: Exportable, tmp_path: Path) -> None:
    import openvino

    write_int8(item, tmp_path / "model.xml", tmp_path / "model.int8.xml", core="grid_sample")
    types = {op.get_type_name() for op in openvino.Core().read_model(tmp_path / "model.int8.xml").get_ops()}
    assert "FakeQuantize" in types


def test_int8_without_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images"):
        quantize_onnx(tmp_path / "model.onnx", [], tmp_path / "int8.onnx")


def test_a_file_without_linear_layers_is_one_line(tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph("relu (float[N] x) => (float[N] y) { y = Relu(x) }")
    onnx.save_model(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match="no float32 linear layers"):
        quantize_onnx(tmp_path / "relu.onnx", [torch.zeros(1).numpy()], tmp_path / "int8.onnx")


def test_accuracy_counts_first_and_first_five() -> None:
    logits = torch.arange(8.0).repeat(4, 1)  # class 7 first, then 6, 5, 4, 3
    labels = torch.tensor([7, 7, 3, 0])
    assert measure_accuracy(lambda images: logits[: len(images)], [(torch.zeros(4, 3, 1, 1), labels)]) == Accuracy(
        4, 0.5, 0.75
    )
    with pytest.raises(UserError, match="no labelled images"):
        measure_accuracy(lambda images: images, [])


def test_a_file_of_fixed_batch_is_measured_on_every_image(item: Exportable, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(2_000_000))

    class ThreeImages:
        def __call__(self, images) -> list:
            assert len(images) == 3
            return [item.reference(torch.from_numpy(images))[0].numpy()]

    fixed = Exportable(
        item.model, ("logits",), (32, 32), {}, [torch.zeros(3, 3, 32, 32)], dynamic=False, labelled=item.labelled
    )
    table = accuracy_table(fixed, {"three": (ThreeImages(), tmp_path / "model.onnx")})
    assert table.splitlines()[-1] == "| three | 100.00% | 100.00% | 8 | 2.0 |"
