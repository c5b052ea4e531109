"""Activations stay channels-last from the image to the head: no pass copies one, forward or backward."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from golden import fill, image
from internimage import InternImage
from ops_dcnv3 import DCNv3

SMALL = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8), "num_classes": 5}
COPIES = ("aten::clone", "aten::copy_", "aten::_to_copy")
MODELS = {
    "T": {},
    "S": {"post_norm": True, "layer_scale": 1.0},
    "H": {"res_post_norm": True, "dw_kernel_size": 5, "center_feature_scale": True},
}


class Copies(TorchDispatchMode):
    """Records the shapes of tensors of four and more dimensions that are copied.

    Under such a mode the linear layers' products are PyTorch's own, as on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in COPIES and args[0].dim() >= 4:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def model_and_image(name, memory_format=torch.channels_last):
    model = fill(InternImage(**SMALL, **MODELS[name])).train().to(memory_format=memory_format)
    return model, image(2, 3, 64, 64, seed=0).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["T", "S", "H"])
def test_a_training_step_with_channels_last_weights_copies_no_activation(name):
    model, x = model_and_image(name)
    with Copies() as copies:
        model(x).square().sum().backward()
    assert copies.shapes == []


def test_contiguous_weights_cost_a_copy_of_each_gradient_and_contiguous_images_one_of_their_own():
    model, x = model_and_image("T", torch.contiguous_format)
    x = x.contiguous()
    with Copies() as copies:
        model(x).square().sum().backward()
    weights = [tuple(p.shape) for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert sorted(copies.shapes) == sorted([*weights, tuple(x.shape)])


@pytest.mark.parametrize("name", ["T", "S", "H"])
@torch.no_grad()
def test_the_rewritten_model_copies_nothing(name):
    model, x = model_and_image(name)
    model = model.optimize_for_inference()
    with Copies() as copies:
        model(x)
    assert copies.shapes == []


def test_a_layer_casts_its_input_once_under_autocast_and_computes_what_it_did():
    layer, x = fill(DCNv3(16, group=2)), image(2, 6, 5, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16), Copies() as copies:
        output = layer(x)
    assert [shape for shape in copies.shapes if math.prod(shape) == x.numel()] == [tuple(x.shape)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output, layer(x.bfloat16()))
        assert layer.double()(x.double()).dtype == torch.float64  # which autocast leaves alone


def test_a_model_runs_on_the_meta_device():
    model = InternImage(**{**SMALL, "core_op": "DCNv3_pytorch"}).to("meta")
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)
