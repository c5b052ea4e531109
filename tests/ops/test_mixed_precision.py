"""Training in bfloat16 and float16 under autocast, and what the operator keeps for its backward pass."""

import math

import pytest
import torch
import torch.nn.functional as F

from golden import image, relative_error
from internimage import InternImage
from machine import BACKENDS, device_of
from ops_dcnv3 import DCNv3, dcnv3

HALF = [torch.bfloat16, torch.float16]
needs_kernels = pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled CPU kernels on this machine")


def train(model, steps, dtype, seed=0):
    """Losses of `steps` updates on two classes of 16 noisy images, as a mixed-precision recipe makes them."""
    device = next(model.parameters()).device
    labels = torch.arange(16, device=device) % 2
    pattern = image(2, 3, 32, 32, seed=seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    losses = []
    for step in range(steps):
        images = pattern[labels] + image(16, 3, 32, 32, seed=step).to(device)
        with torch.autocast(device.type, dtype=dtype):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, scaler


def small_model():
    torch.manual_seed(0)
    return InternImage(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], num_classes=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
def test_training_under_autocast_stays_finite_and_learns(dtype, backend):
    model = small_model().to(device_of(backend))
    for module in model.modules():
        if isinstance(module, DCNv3):
            module.backend = backend
    losses, scaler = train(model, 30, dtype)
    assert all(math.isfinite(loss) for loss in losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    if scaler.is_enabled():
        # A scale that fell below its start would mean gradients that overflowed.
        assert scaler.get_scale() >= 2.0**16


@pytest.mark.parametrize("dtype", HALF)
def test_the_blocks_of_the_largest_models_train_under_autocast(dtype):
    torch.manual_seed(0)
    model = InternImage(
        channels=16,
        depths=[1, 1, 2, 1],
        groups=[1, 2, 4, 8],
        num_classes=2,
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=[1],
        center_feature_scale=True,
        remove_center=True,
    )
    losses, _ = train(model, 10, dtype)
    assert all(math.isfinite(loss) for loss in losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", HALF)
def test_gradients_under_autocast_point_where_those_of_float32_do(dtype):
    model = small_model()
    images = image(4, 3, 64, 64, seed=1)

    def gradient(enabled):
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = F.cross_entropy(model(images).float(), torch.tensor([0, 1, 1, 0]))
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert F.cosine_similarity(gradient(True), gradient(False), dim=0) > 0.99


def test_a_gradient_that_overflows_float16_skips_the_step_and_halves_the_scale():
    layer = DCNv3(8, group=2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = layer(image(1, 5, 5, 8, seed=2)).float().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("logits", [False, True])
def test_only_input_offset_and_mask_are_saved_for_backward(dtype, logits):
    tensors = [image(2, 6, 5, size, seed=size).to(dtype).requires_grad_() for size in (32, 36, 18)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        dcnv3(*tensors, groups=2, backend="cpu", mask_is_logits=logits)
    assert [tensor.data_ptr() for tensor in saved] == [tensor.data_ptr() for tensor in tensors]
    assert [tensor.shape for tensor in saved] == [tensor.shape for tensor in tensors]


@needs_kernels
@pytest.mark.parametrize("dtype", HALF)
def test_under_autocast_the_operator_saves_half_precision_tensors(dtype):
    layer = DCNv3(16, group=2, backend="cpu")
    saved = []
    with (
        torch.autocast("cpu", dtype=dtype),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor),
    ):
        layer(image(1, 7, 6, 16, seed=3))
    operator = [tensor for tensor in saved if tensor.shape in {(1, 7, 6, 36), (1, 7, 6, 18)}]
    assert len(operator) == 2 and all(tensor.dtype == dtype for tensor in operator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
def test_a_long_sum_of_half_precision_gradients_is_accumulated_in_float32(dtype, backend):
    """All 1024 outputs sample one pixel: in half precision the sum would stop growing at 256 or 2048."""
    size, device = 32, device_of(backend)
    x = torch.ones(1, size, size, 1, dtype=dtype, device=device, requires_grad=True)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    offset = torch.stack([16 - columns, 16 - rows], -1)[None].to(device, dtype)
    mask = torch.full((1, size, size, 1), 3.0, dtype=dtype, device=device)
    output = dcnv3(x, offset, mask, kernel_size=1, padding=0, backend=backend)
    output.backward(torch.ones_like(output))
    assert x.grad[0, 16, 16, 0] == 3072 and x.grad.sum() == 3072


@pytest.mark.parametrize("dtype", HALF)
def test_a_model_converted_to_half_precision_stays_close_to_float32(dtype):
    model = small_model().eval()
    images = image(2, 3, 64, 64, seed=4)
    with torch.no_grad():
        expected = model(images)
        actual = model.to(dtype)(images.to(dtype))
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < 0.05
