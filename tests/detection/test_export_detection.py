"""Detectors for other runtimes: the rewritten post-processing is mmdet's, and one file of it computes the same."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import argparse

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from skimage import data
from small_detectors import small
from torch import Tensor

import predict_onnx
from detection.export import main
from golden import filled
from internimage.errors import UserError
from internimage.export.cli import add_arguments
from internimage.export.cores import prepare
from internimage.mm.export.boxes import best, clip, picture_sizes, suppress, suppress_all
from internimage.mm.export.compare import detection_error, matched_detections
from internimage.mm.export.dino import DINO
from internimage.mm.export.images import preprocessing
from internimage.mm.export.models import build_model, detector_parts
from internimage.mm.export.rcnn import RCNN
from mm_recipes.detection import CONFIGS

DEMO = str(CONFIGS / "demo" / "mask_rcnn_internimage_demo.py")


def padded(*sizes: tuple[int, int], whole: tuple[int, int]) -> Tensor:
    """Photographs of `sizes` (height, width), normalised, in a batch padded to `whole`."""
    images = torch.zeros(len(sizes), 3, *whole)
    pictures = (data.astronaut(), data.coffee(), data.chelsea())
    for image, (height, width), picture in zip(images, sizes, pictures):
        pixels = torch.from_numpy(picture[:height, :width].transpose(2, 0, 1)).float()
        image[:, :height, :width] = (pixels - 120.3) / 57.2
    return images


def built(name: str):
    """A small copy of a released detector, every weight and bias at random."""
    config = small(name)
    if "roi_head" in config.model:
        config.model.test_cfg.rcnn.score_thr = 0.1
        config.model.test_cfg.rcnn.max_per_img = 10  # the mask heads take most of the time
        heads = config.model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 64
    model = MODELS.build(config.model)
    model.load_state_dict(filled({key: list(value.shape) for key, value in model.state_dict().items()}))
    return model.eval()


@torch.no_grad()
def framework_detections(model, images: Tensor) -> list[DetDataSample]:
    """What mmdet's own test path finds in a padded batch, in pixels of the batch; masks as large as each picture."""
    samples = []
    for width, height in picture_sizes(images).int().tolist():
        shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
        whole = {"batch_input_shape": tuple(images.shape[2:]), "pad_shape": tuple(images.shape[2:])}
        samples.append(DetDataSample(metainfo={**shape, **whole}))
    return model.predict(images, samples, rescale=True)


def framework_boxes(found: list[DetDataSample], places: int) -> tuple[Tensor, Tensor]:
    """mmdet's results in the form of the exported outputs, without masks."""
    boxes = torch.zeros(len(found), places, 5)
    labels = torch.full((len(found), places), -1)
    for index, sample in enumerate(found):
        objects = sample.pred_instances
        boxes[index, : len(objects)] = torch.cat([objects.bboxes, objects.scores[:, None]], 1)
        labels[index, : len(objects)] = objects.labels
    return boxes, labels


# The parts


def test_the_sizes_of_pictures_are_read_from_their_padding():
    sizes = picture_sizes(padded((40, 64), (64, 33), (64, 64), whole=(64, 64)))
    assert sizes.tolist() == [[64, 40], [33, 64], [64, 64]]


def test_an_image_of_nothing_but_zeros_counts_as_unpadded():
    assert picture_sizes(torch.zeros(1, 3, 32, 64)).tolist() == [[64, 32]]


def test_boxes_are_clipped_to_their_own_picture():
    boxes = torch.tensor([[[-5.0, 1, 90, 90]], [[-5.0, 1, 90, 90]]])
    assert clip(boxes, torch.tensor([[50.0, 40], [60, 70]]))[:, 0].tolist() == [[0, 1, 50, 40], [0, 1, 60, 70]]


def test_missing_candidates_have_score_zero():
    scores, index = best(torch.tensor([[0.2, 0.7]]), 4)
    assert index.tolist() == [[1, 0, 0, 0]]
    assert scores[0].tolist() == pytest.approx([0.7, 0.2, 0.0, 0.0])


def crowd() -> tuple[Tensor, Tensor]:
    """Sixty overlapping boxes of two images, `(2, 60, 4)`, and their scores for three classes, some zero."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 60, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 60, 2, generator=generator) * 30], -1)
    return boxes, torch.rand(2, 3, 60, generator=generator) * (torch.rand(2, 3, 60, generator=generator) > 0.3)


def test_suppression_is_torchvisions_for_every_class_of_every_image():
    boxes, scores = crowd()
    keep = suppress(boxes, scores, 0.5, 7)
    for image in range(2):
        for label in range(3):
            row = scores[image, label]
            kept = [i for i in torchvision.ops.nms(boxes[image], row, 0.5).tolist() if row[i] > 0][:7]
            assert sorted(kept) == keep[image, label].nonzero()[:, 0].tolist()


class Suppress(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return suppress(boxes, scores, 0.5, 60)


def test_compilers_suppress_alike_in_any_number_of_images_and_without_objects():
    boxes, scores = crowd()
    batch = {0: torch.export.Dim("batch", max=64)}
    program = torch.export.export(Suppress(), (boxes, scores), dynamic_shapes=(batch, batch))
    program = program.run_decompositions({torch.ops.internimage.suppress.default: suppress_all})
    assert not any("internimage" in str(node.target) for node in program.graph.nodes)
    compiled = program.module()
    for count in (1, 2):
        part = boxes[:count], scores[:count]
        assert torch.equal(compiled(*part), suppress(*part, 0.5, 60))
    assert not suppress_all(boxes, scores * 0, 0.5, 60).any()


# Against mmdet


def check_against_mmdet(model, module, images: Tensor) -> tuple[tuple[Tensor, ...], list[DetDataSample]]:
    with torch.no_grad():
        ours = module.eval()(images)
    found = framework_detections(model, images)
    theirs = framework_boxes(found, ours[0].shape[1])
    assert (theirs[1] >= 0).sum() > 5
    assert detection_error(ours[:2], theirs)[1] < 1e-5
    return ours, found


@pytest.mark.parametrize(
    "name", ["coco/mask_rcnn_internimage_t_fpn_1x_coco.py", "coco/cascade_internimage_l_fpn_1x_coco.py"]
)
def test_boxes_and_masks_of_padded_photographs_are_mmdets(name):
    model = built(name)
    images = padded((60, 90), (64, 64), whole=(64, 96))
    (boxes, labels, masks), found = check_against_mmdet(model, RCNN(model), images)
    for index, sample in enumerate(found):
        whole = sample.pred_instances.masks.numpy()
        for place, expected in enumerate(whole):
            pasted = predict_onnx.paste_mask(
                masks[index, place].numpy(), boxes[index, place].numpy(), *whole.shape[:0:-1]
            )
            certain = np.abs(pasted - 0.5) > 1e-4
            assert np.array_equal((pasted >= 0.5)[certain], expected[certain])


@pytest.mark.parametrize(
    "name",
    [
        "coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py",
        "coco/dino_4scale_cbinternimage_h_objects365_coco_ss.py",
    ],
)
def test_boxes_of_padded_photographs_are_mmdets_for_dino(name):
    model = built(name)
    check_against_mmdet(model, DINO(model), padded((128, 100), (90, 160), whole=(128, 160)))


@pytest.mark.parametrize(
    ("name", "module", "size"),
    [
        ("coco/mask_rcnn_internimage_t_fpn_1x_coco.py", RCNN, (64, 96)),
        ("coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py", DINO, (128, 160)),
    ],
)
@torch.no_grad()
def test_half_weights_leave_boxes_in_single_precision(name, module, size):
    model = built(name)
    if hasattr(model, "roi_head"):
        model.roi_head.test_cfg.max_per_img = 4  # PyTorch's float16 convolutions are slow
    whole = module(model).eval()
    images = padded(size, whole=size)
    expected, actual = whole(images), prepare(whole).half()(images.half())
    assert actual[0].dtype == torch.float32 and (expected[1] >= 0).any()
    assert (actual[0].half() != actual[0]).any()  # more digits than float16 has
    assert detection_error(actual, expected)[1] < 5e-2


def test_the_rewritten_detector_shares_its_weights_and_leaves_the_original_as_it_is():
    model = built("coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py")
    kinds = [type(module) for module in model.modules()]
    module = DINO(model)
    assert [type(part) for part in model.modules()] == kinds
    assert {p.data_ptr() for p in module.parameters()} == {p.data_ptr() for p in model.parameters()}


# The measure


def results(*rows: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """One image with a detection per row: label, score, x1, y1, x2, y2."""
    rows = torch.tensor(rows)
    return torch.cat([rows[:, 2:], rows[:, 1:2]], 1)[None], rows[None, :, 0].long()


def test_order_does_not_count_and_shares_do():
    a = results((0, 0.9, 10, 10, 50, 100), (1, 0.8, 20, 20, 30, 30))
    b = results((1, 0.8, 20, 20, 30, 30), (0, 0.9, 10, 10, 50.5, 100))
    assert detection_error(a, b) == pytest.approx((0.5, 0.005), abs=1e-5)


@pytest.mark.parametrize("label", [2, -1])
def test_a_detection_without_partner_counts_with_its_score(label):
    a = results((0, 0.9, 10, 10, 50, 100), (1, 0.8, 20, 20, 30, 30), (-1, 0, 0, 0, 0, 0))
    b = results((0, 0.9, 10, 10, 50, 100), (label, 0.8, 20, 20, 30, 30), (-1, 0, 0, 0, 0, 0))
    assert detection_error(a, b)[1] == pytest.approx(0.8)


def test_one_that_was_cut_at_the_last_place_counts_little():
    a = results((0, 0.9, 10, 10, 50, 100), (1, 0.3001, 20, 20, 30, 30))
    b = results((0, 0.9, 10, 10, 50, 100), (1, 0.3, 60, 60, 70, 70))
    assert detection_error(a, b)[1] == pytest.approx(1e-4, abs=1e-6)


def test_one_that_just_passes_the_threshold_counts_little():
    a = results((0, 0.9, 10, 10, 50, 100), (1, 0.0502, 20, 20, 30, 30))
    b = results((0, 0.9, 10, 10, 50, 100), (-1, 0, 0, 0, 0, 0))
    for sides in ((a, b), (b, a)):
        assert detection_error(*sides, threshold=0.05)[1] == pytest.approx(2e-4, abs=1e-6)


def test_masks_are_compared_between_partners_and_do_not_make_them():
    a = results((0, 0.9, 10, 10, 50, 100), (1, 0.8, 20, 20, 30, 30))
    masks = torch.zeros(1, 2, 28, 28)
    other = masks.clone()
    other[0, 1, 3, 4] = 0.04
    assert detection_error((*a, masks), (*a, other)) == pytest.approx((0.04, 0.04))


def test_matched_detections_are_those_whose_distance_is_told():
    a = results((0, 0.9, 10, 10, 50, 100), (1, 0.8, 20, 20, 30, 30), (-1, 0, 0, 0, 0, 0))
    b = results((0, 0.9, 10, 10, 50, 100), (2, 0.8, 20, 20, 30, 30), (2, 0.1, 0, 0, 5, 5))
    assert matched_detections(a, b) == (1, 3) and matched_detections(b, a) == (1, 2)


@pytest.mark.parametrize(
    "name", ["coco/cascade_internimage_l_fpn_1x_coco.py", "coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py"]
)
def test_random_weights_find_objects_to_compare(name):
    model = build_model(small(name, num_classes=80), None)
    boxes, labels = framework_boxes(framework_detections(model, padded((64, 96), whole=(64, 96))), 100)
    assert (labels >= 0).sum() >= 5 and len(boxes[0, labels[0] >= 0].unique(dim=0)) >= 5


def test_nan_is_not_close():
    a = results((0, float("nan"), 10, 10, 50, 100))
    assert detection_error(a, results((0, 0.9, 10, 10, 50, 100)))[1] > 0.5


# The file


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo's detector, much smaller and with random weights, written by the script."""
    path = tmp_path_factory.mktemp("export") / "detector.onnx"
    options = ["backbone.channels=16", "backbone.depths=[1,1]", "backbone.groups=[1,2]"]
    # Two levels of the backbone and of the pyramid.
    options += ["backbone.out_indices=[0,1]", "neck.in_channels=[16,32]", "neck.num_outs=2"]
    options += ["rpn_head.anchor_generator.strides=[4,8]"]
    options += [f"roi_head.{name}_roi_extractor.featmap_strides=[4,8]" for name in ("bbox", "mask")]
    options = [f"model.{option}" for option in options]
    main([DEMO, "--output", str(path), "--repeats", "0", "--cfg-options", *options])
    return path


def test_the_file_has_standard_operators_only_and_agrees_with_pytorch(exported):
    proto = onnx.load(exported)  # the script has compared it, at three sizes and batches of one and three
    assert {node.domain for node in proto.graph.node} == {""}
    kinds = {node.op_type for node in proto.graph.node}
    assert {"NonMaxSuppression", "RoiAlign", "TopK", "GridSample"} <= kinds
    assert {item.domain for item in proto.opset_import} == {""}


def test_the_file_takes_any_batch_and_size(exported):
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    images = padded((64, 128), (100, 128), (128, 128), whole=(128, 128)).numpy()
    boxes, labels, masks = session.run(None, {"images": images})
    assert boxes.shape == (3, 30, 5) and labels.shape == (3, 30) and masks.shape == (3, 30, 28, 28)
    assert (boxes[0, :, 3] <= 64).all() and boxes[2, :, 3].max() > 100


def test_predict_onnx_lists_and_draws_the_objects(exported, tmp_path, capsys):
    predict_onnx.Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    picture = tmp_path / "picture.png"
    predict_onnx.main([str(exported), str(tmp_path / "photo.png"), "--threshold", "0.1", "--out", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"{len(lines) - 2} objects with a score of at least 0.1" and len(lines) > 3
    assert any(name in lines[0] for name in ("T-shirt", "Trouser", "Dress", "Bag", "Ankle-boot"))
    assert predict_onnx.Image.open(picture).size == (512, 512)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "x.onnx", "--size", "100"], "multiples of 32"),
        (["--output", "x.onnx", "--checkpoint", "none.pth"], "none.pth"),
        (["--output", "x.onnx", "--images", __file__], "choose another image"),
    ],
)
def test_mistakes_end_in_one_line(options, message, capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        main([DEMO, *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("backbone", ["internimage_t_1x_coco_layer_wise_lr", "cbinternimage_h_objects365_coco_ss"])
def test_an_image_with_fewer_places_than_queries_is_refused(backbone):
    model = build_model(small(f"coco/dino_4scale_{backbone}.py", num_classes=80), None)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--output", "model.onnx", "--size", "32"])
    with pytest.raises(UserError, match="30 queries; set a larger --size"):
        detector_parts(model, args, predict_onnx.prepare)


def test_executorch_names_what_it_lacks_for_rcnn():
    model = built("coco/mask_rcnn_internimage_t_fpn_1x_coco.py")
    with pytest.raises(UserError, match="no kernels for non-maximum suppression and RoIAlign"):
        detector_parts(model, argparse.Namespace(format="executorch"), predict_onnx.prepare)


def test_a_step_that_cannot_be_repeated_is_named():
    config = Config.fromfile(DEMO)
    config.test_dataloader.dataset.pipeline.insert(1, {"type": "AutoContrast"})
    with pytest.raises(UserError, match="AutoContrast"):
        preprocessing(config)
