"""Segmentors for other runtimes: the label maps are mmseg's, and one file of the whole computes the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from golden_segmentors import golden_segmentor
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmseg.registry import MODELS
from skimage import data
from torch import Tensor

import predict_onnx
from golden import filled
from internimage.export.cores import prepare
from internimage.mm.export.compare import segmentation_error
from internimage.mm.export.images import preprocessing
from internimage.mm.export.layers import AveragePool
from internimage.mm.export.segmentors import Segmentor
from mm_recipes.segmentation import CONFIGS
from segmentation.export import main

DEMO = str(CONFIGS / "demo" / "upernet_internimage_demo.py")


def photographs(height: int, width: int) -> Tensor:
    """Two, normalised, `(2, 3, height, width)`."""
    pictures = [picture()[100 : 100 + height, 100 : 100 + width] for picture in (data.astronaut, data.chelsea)]
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - 120) / 57


def segformer():
    """A small copy of a released SegFormer head, every weight at random."""
    model = Config.fromfile(CONFIGS / "mapillary" / "segformer_internimage_l_512x1024_80k_mapillary.py").model
    model.backbone.update(channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], init_cfg=None)
    model.decode_head.update(in_channels=[16, 32, 64, 128], channels=32)
    model.data_preprocessor = None
    model = revert_sync_batchnorm(MODELS.build(model))
    model.load_state_dict(filled({key: list(value.shape) for key, value in model.state_dict().items()}))
    return model.eval()


def framework_labels(model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Label maps and scores of mmseg's own test path."""
    meta = {"img_shape": tuple(images.shape[2:]), "ori_shape": tuple(images.shape[2:])}
    maps = model.encode_decode(images, [meta] * len(images))
    maps = maps if hasattr(model.decode_head, "transformer_decoder") else maps.softmax(1)
    scores, labels = maps.max(1)
    return labels, scores


@pytest.mark.parametrize("name", ["upernet_mini", "mask2former_mini", "segformer"])
@torch.no_grad()
def test_labels_and_scores_of_photographs_are_mmsegs(name):
    model = segformer() if name == "segformer" else golden_segmentor(name).model
    images = photographs(96, 160)
    labels, scores = Segmentor(model).eval()(images)
    assert labels.shape == scores.shape == (2, 96, 160) and len(labels.unique()) > 1
    assert segmentation_error((labels, scores), framework_labels(model, images))[1] < 1e-4


@pytest.mark.parametrize("name", ["upernet_mini", "mask2former_mini"])
@torch.no_grad()
def test_half_weights_give_nearly_the_same_labels(name):
    module = Segmentor(golden_segmentor(name).model).eval()
    images = photographs(96, 160)
    labels, scores = prepare(module).half()(images.half())
    assert segmentation_error((labels, scores.float()), module(images))[1] < 5e-2


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_average_pooling_is_pytorchs_where_bins_overlap(size):
    x = torch.randn(2, 3, 7, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AveragePool(size)(x), torch.nn.AdaptiveAvgPool2d(size)(x))


def test_the_measure_is_the_share_of_other_labels_or_the_scores():
    labels, scores = torch.zeros(1, 4, 5), torch.full((1, 4, 5), 0.5)
    other = labels.clone()
    other[0, 0, 0] = 1
    assert segmentation_error((other, scores), (labels, scores)) == (0, 1 / 20)
    assert segmentation_error((labels, scores + 0.25), (labels, scores)) == (0.25, 0.25)
    assert segmentation_error((labels, scores * float("nan")), (labels, scores))[1] == float("inf")


def test_the_words_for_a_released_pipeline():
    words = preprocessing(Config.fromfile(CONFIGS / "ade20k" / "upernet_internimage_t_512_160k_ade20k.py"))
    assert words["resize"] == "keep ratio, stretch to multiple" and words["multiple"] == 32
    assert words["scale"] == [2048, 512] and words["channels"] == "RGB"
    assert [round(255 * value, 3) for value in words["mean"]] == [123.675, 116.28, 103.53]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo's segmentor, much smaller and with random weights, written by the script."""
    path = tmp_path_factory.mktemp("export") / "segmentor.onnx"
    options = ["backbone.channels=16", "backbone.depths=[1,1]", "backbone.groups=[1,2]"]
    # Two levels of the backbone.
    options += ["backbone.out_indices=[0,1]", "decode_head.in_index=[0,1]", "decode_head.in_channels=[16,32]"]
    options += ["auxiliary_head.in_index=1", "auxiliary_head.in_channels=32", "decode_head.pool_scales=[1,2]"]
    options = [f"model.{option}" for option in options]
    main([DEMO, "--output", str(path), "--repeats", "0", "--cfg-options", *options])
    return path


def test_the_file_has_standard_operators_only_and_takes_any_batch_and_size(exported):
    assert {node.domain for node in onnx.load(exported).graph.node} == {""}
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    labels, scores = session.run(None, {"images": photographs(70, 101).numpy()})
    assert labels.shape == scores.shape == (2, 70, 101) and labels.max() < 6


def test_predict_onnx_lists_shares_and_paints_classes(exported, tmp_path, capsys):
    predict_onnx.Image.fromarray(data.astronaut()[:90, :120]).save(tmp_path / "photo.png")
    picture = tmp_path / "picture.png"
    predict_onnx.main([str(exported), str(tmp_path / "photo.png"), "--out", str(picture)])
    *classes, _ = capsys.readouterr().out.splitlines()
    assert sum(float(line.split("%")[0]) for line in classes) == pytest.approx(100, abs=0.1)
    assert predict_onnx.Image.open(picture).size == (120, 90)
    assert predict_onnx.Model(exported).color(1) == (31, 119, 180)


def test_a_bad_size_ends_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main([DEMO, "--output", "x.onnx", "--size", "8"])
    assert capsys.readouterr().err.count("\n") == 1
