"""int8: which layers are quantised, what it costs, and how mistakes are reported."""

from pathlib import Path

import onnx
import pytest
import torch

import golden
from internimage.errors import UserError
from internimage.export import onnx as onnx_format
from internimage.export.quantize import linear_layers, quantize_onnx, sampling_layers, write_int8

BLOCKS = 2
IMAGES = [golden.image(1, 3, 64, 64, seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def deform_conv_onnx(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deform_conv") / "model.onnx"
    onnx_format.write(small(1, 3, 64, 64), path, core="deform_conv")
    return path


@pytest.mark.parametrize("name", ["small_onnx", "deform_conv_onnx"])
def test_int8_stays_close_keeps_metadata_and_the_offset_and_mask_projections(name, small, request, tmp_path: Path):
    source, path, item = request.getfixturevalue(name), tmp_path / "int8.onnx", small(1, 3, 64, 64)
    graph = onnx.load(source).graph
    assert len(sampling_layers(graph)) == 2 * BLOCKS
    layers = linear_layers(graph)
    assert len(layers) == 4 * BLOCKS  # value and output projection, two of the MLP; not the classifier
    assert not set(layers) & sampling_layers(graph)
    write_int8(item, source, path, IMAGES, core="unused", symmetric=False)
    expected = item.reference(IMAGES[0])[0]
    error = (torch.from_numpy(onnx_format.load(path)(IMAGES[0].numpy())[0]) - expected).abs().max()
    assert 0 < error < 0.05 * expected.abs().max()
    assert path.stat().st_size < 0.7 * source.stat().st_size
    assert {"task"} <= {entry.key for entry in onnx.load(path).metadata_props}


def test_openvino_takes_the_same_int8_layers(small, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    item = small(1, 3, 64, 64, depths=[1], groups=[2])
    path = tmp_path / "model.int8.xml"
    write_int8(item, tmp_path / "model.xml", path, IMAGES, core="grid_sample", symmetric=False)
    assert "FakeQuantize" in {op.get_type_name() for op in openvino.Core().read_model(path).get_ops()}


def test_what_cannot_be_quantised_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images"):
        quantize_onnx(tmp_path / "model.onnx", [], tmp_path / "int8.onnx")
    graph = onnx.parser.parse_graph("relu (float[N] x) => (float[N] y) { y = Relu(x) }")
    onnx.save_model(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match="no float32 linear layers"):
        quantize_onnx(tmp_path / "relu.onnx", [torch.zeros(1).numpy()], tmp_path / "int8.onnx")
