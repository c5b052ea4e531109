"""The stand-in for mmcv's compiled module, called through mmcv's own functions where these run on a CPU."""

import importlib.util
import math
import sys

import detection.models  # noqa: F401 - isort: skip - before mmcv.ops
import mmcv.ops
import pytest
import shapely
import torch
import torchvision
from mmcv.ops.focal_loss import SigmoidFocalLossFunction
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from shapely import Polygon, affinity
from torch import Tensor

from internimage.errors import UserError
from internimage.mm import mmcv_ext
from internimage.mm.rotated import rotated_iou


def boxes(count: int, size: float = 60, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = size * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 2 + size * torch.rand(count, 2, generator=generator)], 1)


def rois_on(images: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    index = torch.arange(count).remainder(images)[:, None]
    return torch.cat([index, boxes(count, size=20) - 3], 1).to(dtype)


def test_nms_keeps_what_torchvision_keeps():
    candidates, scores = boxes(200), torch.rand(200, generator=torch.Generator().manual_seed(1))
    kept_boxes, kept = mmcv.ops.nms(candidates, scores, iou_threshold=0.4)
    expected = torchvision.ops.nms(candidates, scores, 0.4)
    assert torch.equal(kept, expected) and torch.equal(kept_boxes[:, :4], candidates[expected])


def test_nms_with_offset_counts_pixels_inclusively():
    # As edges these boxes have an IoU of 1/4; as 2x2-pixel and 4x2-pixel boxes, of 4/8.
    candidates = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
    scores = torch.tensor([0.9, 0.8])
    for offset, count in ((0, 2), (1, 1)):
        assert len(mmcv.ops.nms(candidates, scores, iou_threshold=0.45, offset=offset)[1]) == count


def test_nms_of_no_boxes_is_empty():
    assert len(mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), iou_threshold=0.5)[1]) == 0


def test_overlaps_are_those_of_torchvision():
    first, second = boxes(5), boxes(7, seed=1)
    expected = torchvision.ops.box_iou(first, second)
    torch.testing.assert_close(mmcv.ops.bbox_overlaps(first, second), expected)
    torch.testing.assert_close(mmcv.ops.bbox_overlaps(first, second[:5], aligned=True), expected[:, :5].diag())


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_and_its_gradient_are_those_of_torchvision(aligned, sampling_ratio):
    rois = rois_on(2, 7)
    results = []
    for function in (mmcv.ops.roi_align, torchvision.ops.roi_align):
        features = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(2)).requires_grad_()
        if function is mmcv.ops.roi_align:
            pooled = function(features, rois, (5, 7), 0.5, sampling_ratio, "avg", aligned)
        else:
            pooled = function(features, rois, (5, 7), 0.5, sampling_ratio, aligned)
        pooled.square().sum().backward()
        results.append((pooled, features.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_roi_align_passes_gradcheck():
    features = torch.randn(1, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    rois = rois_on(1, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda x: mmcv.ops.roi_align(x, rois, 2, 0.3, 0, "avg", True), features)


def test_roi_align_says_that_max_pooling_is_missing():
    with pytest.raises(UserError, match="pool_mode='max'"):
        mmcv.ops.roi_align(torch.randn(1, 2, 8, 8), rois_on(1, 2), 2, 1.0, 0, "max", True)


def test_sigmoid_focal_loss_and_its_gradient_are_those_of_torchvision():
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4])  # 4 is background
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4].double()
    rows = torch.cat([weight, weight.new_ones(1)])[target, None]
    expected = (rows * torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha=0.3, gamma=1.5)).sum()
    (expected_grad,) = torch.autograd.grad(expected, logits)
    loss = SigmoidFocalLossFunction.apply(logits, target, 1.5, 0.3, weight, "sum")
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close((loss, grad), (expected, expected_grad), rtol=1e-10, atol=1e-12)


def attention_case(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images, three queries, two heads of four channels, levels of 4x5 and 2x3, two points."""
    generator = torch.Generator().manual_seed(4)
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 2, 4, generator=generator, dtype=dtype)
    locations = 1.4 * torch.rand(2, 3, 2, 2, 2, 2, generator=generator, dtype=dtype) - 0.2
    weights = torch.rand(2, 3, 2, 2, 2, generator=generator, dtype=dtype)
    return value, shapes, torch.tensor([0, 20]), locations, weights


def attend_pointwise(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, one corner of one sampling point at a time."""
    images, queries, heads, levels, points, _ = locations.shape
    out = value.new_zeros(images, queries, heads, value.shape[-1])
    for n, q, h, level, p in torch.cartesian_prod(*map(torch.arange, (images, queries, heads, levels, points))):
        height, width = shapes[level].tolist()
        x = locations[n, q, h, level, p, 0] * width - 0.5
        y = locations[n, q, h, level, p, 1] * height - 0.5
        for row in (y.floor(), y.floor() + 1):
            for column in (x.floor(), x.floor() + 1):
                if 0 <= row < height and 0 <= column < width:
                    key = int(starts[level] + row * width + column)
                    share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * weights[n, q, h, level, p]
                    out[n, q, h] += share * value[n, key, h]
    return out.flatten(2)


def test_deformable_attention_is_its_definition():
    case = attention_case(torch.float64)
    out = MultiScaleDeformableAttnFunction.apply(*case, 64)
    torch.testing.assert_close(out, attend_pointwise(*case), rtol=1e-10, atol=1e-12)


def test_deformable_attention_passes_gradcheck():
    value, shapes, starts, locations, weights = attention_case(torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (value, locations, weights))
    function = lambda v, loc, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, loc, w, 64)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)


def test_an_operator_that_is_missing_says_so_when_called():
    with pytest.raises(UserError, match="operator active_rotated_filter_forward .* install the full mmcv"):
        sys.modules["mmcv._ext"].active_rotated_filter_forward(torch.zeros(1))


def test_a_real_extension_wins(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert mmcv_ext.install() is False
    assert "mmcv._ext" not in sys.modules


def test_a_missing_mmcv_names_the_requirements(monkeypatch):
    def no_parent(name):
        raise ModuleNotFoundError("No module named 'mmcv'")

    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(importlib.util, "find_spec", no_parent)
    with pytest.raises(UserError, match=r"\[mm\]"):
        mmcv_ext.install()


# Rotated boxes: shapely computes what is expected


def rotated(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre, size = 3 * torch.rand(count, 2, generator=generator), 0.3 + 3 * torch.rand(count, 2, generator=generator)
    return torch.cat([centre, size, 7 * torch.rand(count, 1, generator=generator)], 1).double()


def shape(box: Tensor) -> Polygon:
    x, y, width, height, angle = box.tolist()
    rectangle = shapely.box(-width / 2, -height / 2, width / 2, height / 2)
    return affinity.translate(affinity.rotate(rectangle, angle, (0, 0), use_radians=True), x, y)


def shared(first: Polygon, second: Polygon) -> float:
    return first.intersection(second).area / first.union(second).area


def test_the_iou_of_rotated_boxes_is_that_of_their_shapes():
    first, second = rotated(300), rotated(300, seed=1)
    expected = torch.tensor([shared(shape(a), shape(b)) for a, b in zip(first, second)], dtype=torch.float64)
    assert 0.3 < (expected > 0).double().mean() < 1
    torch.testing.assert_close(rotated_iou(first, second), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0, 0, 4, 2, 0], 1),  # every edge coincides
        ([0, 0, 2, 4, math.pi / 2], 1),
        ([0, 0, 4, 2, math.pi], 1),
        ([0, 0, 2, 2, 0], 1 / 2),  # inside, two edges coincide
        ([1, 0, 2, 2, 0], 1 / 2),
        ([4, 0, 4, 2, 0], 0),  # side by side
        ([4, 2, 4, 2, 0], 0),  # touches at a corner
        ([0, 0, 1, 1, 0.3], 1 / 8),
        ([90, 0, 1, 1, 0], 0),
    ],
    ids=str,
)
def test_edges_that_coincide_count_once(other, expected):
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0], other], dtype=torch.float64)
    for pair in (boxes, boxes + torch.tensor([500.0, -300.0, 0, 0, 0])):
        assert rotated_iou(pair[:1], pair[1:]).item() == pytest.approx(expected, abs=1e-12)
        assert rotated_iou(pair[1:], pair[:1]).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_rotated_nms_keeps_what_the_greedy_rule_keeps(threshold):
    boxes, scores = rotated(120).float(), torch.rand(120, generator=torch.Generator().manual_seed(2))
    shapes, left, expected = [shape(box) for box in boxes], scores.argsort(descending=True).tolist(), []
    while left:
        expected.append(left.pop(0))
        left = [i for i in left if shared(shapes[expected[-1]], shapes[i]) <= threshold]
    kept, indices = mmcv.ops.nms_rotated(boxes, scores, threshold)
    assert indices.tolist() == expected and 5 < len(expected) < 115
    torch.testing.assert_close(kept, torch.cat([boxes, scores[:, None]], 1)[indices])


def test_rotated_boxes_of_two_labels_do_not_suppress_each_other():
    boxes, scores = rotated(1).repeat(3, 1).float(), torch.tensor([0.9, 0.8, 0.7])
    indices = mmcv.ops.nms_rotated(boxes, scores, 0.5, labels=torch.tensor([0.0, 1.0, 1.0]))[1]
    assert indices.tolist() == [0, 1]


# DCNv2


@pytest.mark.parametrize(("bias", "groups"), [(True, 1), (False, 2)])
def test_modulated_deformable_convolution_is_torchvisions(bias, groups):
    torch.manual_seed(0)
    layer = mmcv.ops.ModulatedDeformConv2d(
        4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=groups, deform_groups=2, bias=bias
    )
    x = torch.randn(2, 4, 9, 11, requires_grad=True)
    rows, columns = 5, 7
    offset = torch.randn(2, 2 * 2 * 15, rows, columns, requires_grad=True)
    mask = torch.rand(2, 2 * 15, rows, columns, requires_grad=True)
    if bias:
        torch.nn.init.normal_(layer.bias)
    inputs = [x, offset, mask, *layer.parameters()]
    output = layer(x, offset, mask)
    expected = torchvision.ops.deform_conv2d(x, offset, layer.weight, layer.bias, (2, 1), (1, 2), (1, 2), mask)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (output, expected))):
        torch.testing.assert_close(ours, theirs)
