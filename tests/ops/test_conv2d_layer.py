"""`DCNv3Conv2d` takes the place of `Conv2d`, and docs/layers.md puts it into a detector and a YOLO-style network."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch import Tensor, nn

from internimage.export import prepare
from internimage.flops import count_flops
from internimage.inference import optimize_for_inference
from ops_dcnv3 import DCNv3Conv2d

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


def deformed(module: nn.Module) -> nn.Module:
    """The module with offsets and weights that are not zero, as after training."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, DCNv3Conv2d):
            nn.init.normal_(layer.dcn.offset.weight, std=0.2)
            nn.init.normal_(layer.dcn.mask.weight, std=0.2)
    return module


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((6, 8), {"kernel_size": 3}),
        ((32, 16), {"kernel_size": (3, 3), "padding": (1, 1), "stride": (2, 2), "bias": False}),
        ((8, 8), {"kernel_size": 2, "stride": 2}),
        ((12, 6), {"kernel_size": 5, "padding": 1, "dilation": 2, "groups": 3}),
        ((8, 8), {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 8}),
        ((3, 7), {"kernel_size": 1}),
    ],
)
def test_a_new_layer_is_the_convolution_with_equal_weights_at_all_points(size, arguments):
    layer, conv = DCNv3Conv2d(*size, **arguments), nn.Conv2d(*size, **arguments)
    kernel = layer.dcn.kernel_size
    first, last = layer.dcn.input_proj.weight, layer.dcn.output_proj.weight
    with torch.no_grad():
        blocks = [b @ a for a, b in zip(first.chunk(conv.groups), last.chunk(conv.groups))]
        conv.weight.copy_((torch.cat(blocks) / kernel**2)[..., None, None].expand_as(conv.weight))
        if conv.bias is not None:
            layer.dcn.output_proj.bias.normal_()
            conv.bias.copy_(layer.dcn.output_proj.bias)
    images = torch.randn(2, size[0], 13, 17)
    torch.testing.assert_close(layer(images), conv(images), rtol=1e-4, atol=1e-5)
    assert layer.dcn.group == max(size[0] // 16, 1)


def test_channels_of_other_groups_only_move_the_samples():
    layer = DCNv3Conv2d(8, 8, 3, padding=1, groups=2).double()
    images = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    other = images.clone()
    other[:, 4:] += torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(images)[:, :4], layer(other)[:, :4])  # no offsets yet
    assert not torch.allclose(layer(images)[:, 4:], layer(other)[:, 4:])
    deformed(layer)
    assert not torch.allclose(layer(images)[:, :4], layer(other)[:, :4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 8, 3, 1, 1, 1, 4), r"groups must divide in_channels and out_channels; got 4 for \(6, 8\)"),
        ((8, 8, (1, 7)), r"kernel_size must be a positive int, or two equal ones; got \(1, 7\)"),
        ((8, 8, 3, 1, "same"), "padding must be an int of at least 0, or two equal ones; got 'same'"),
        ((8, 8, 3, 0), "stride must be a positive int, or two equal ones; got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCNv3Conv2d(*arguments)
    with pytest.raises(ValueError, match="deform_groups must divide in_channels; got 3 for 8"):
        DCNv3Conv2d(8, 8, 3, deform_groups=3)
    with pytest.raises(ValueError, match=r"shape \(N, 8, H, W\); got \(1, 6, 6, 8\)"):
        DCNv3Conv2d(8, 8, 3)(torch.zeros(1, 6, 6, 8))


def test_the_faster_copy_and_the_flop_counter_know_the_layer():
    layer, images = deformed(DCNv3Conv2d(16, 32, 3, padding=1, groups=2)), torch.randn(1, 16, 9, 9)
    torch.testing.assert_close(optimize_for_inference(layer)(images), layer(images), rtol=1e-4, atol=1e-5)
    pixels, narrow = 81, DCNv3Conv2d(16, 16, 3, padding=1)
    wider = count_flops(DCNv3Conv2d(16, 32, 3, padding=1), images) - count_flops(narrow, images)
    assert wider == pixels * 16 * 16  # only the last projection


# The page


QUIET = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page() -> dict:
    """Everything that the page's examples define."""
    torch.manual_seed(0)
    names: dict = {}
    for block in re.findall(r"^<!-- run by: [^\n]*\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def from_yaml(page: dict) -> nn.Module:
    """The lines of the YAML block: known modules are scaled by 0.25, others get their arguments as written."""
    layers, channels = [], 3
    rows = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1])["backbone"]
    for _, _, kind, (width, *others) in rows:
        if kind == "Conv":
            size, stride = others
            layers.append(page["unit"](nn.Conv2d(channels, width // 4, size, stride, size // 2)))
            channels = width // 4
        elif kind == "C2f":
            layers.append(nn.Conv2d(channels, channels := width // 4, 1))
        else:
            assert width == others[0] == channels
            layers.append(page[kind](width, *others))
    return nn.Sequential(*layers)


def check_gradients_and_onnx(model: nn.Module, loss: Tensor, images: Tensor, path: Path) -> None:
    """All parameters of the new layers have gradients; ONNX Runtime computes what PyTorch does."""
    loss.backward()
    layers = [layer for layer in model.modules() if isinstance(layer, DCNv3Conv2d)]
    assert layers and all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for x in layers for p in x.parameters())
    exported = prepare(model)
    torch.onnx.export(exported, (images,), path, dynamo=False, opset_version=20)  # 1 s; internimage.export takes 10
    expected = exported(images)
    session = onnxruntime.InferenceSession(path)
    results = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for result, tensor in zip(results, expected.values() if isinstance(expected, dict) else [expected], strict=True):
        np.testing.assert_allclose(result, tensor.numpy(), rtol=0, atol=1e-5 * tensor.abs().max().item())


@QUIET
def test_a_torchvision_detector_trains_in_bfloat16_and_its_backbone_becomes_onnx(page, tmp_path):
    detector, images = page["detector"].train(), torch.rand(2, 3, 64, 64)
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}] * 2
    deformed(detector)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(detector(list(images), targets).values())
    check_gradients_and_onnx(detector.backbone, loss, images[:1], tmp_path / "backbone.onnx")
    boxes = detector.eval()(list(images))
    assert len(boxes) == 2 and boxes[0]["boxes"].shape[1] == 4


@QUIET
def test_a_yolo_style_network_from_the_yaml_lines_trains_in_bfloat16_and_becomes_onnx(page, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    assert page["network"](images).shape == (2, 64, 8, 8)
    network = deformed(from_yaml(page)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
    assert output.shape == (2, 64, 16, 16)
    loss = (output.float() * torch.randn(output.shape)).sum()
    check_gradients_and_onnx(network, loss, images[:1], tmp_path / "network.onnx")
