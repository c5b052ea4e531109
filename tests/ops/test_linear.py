"""Linear layers on oneDNN: equal to PyTorch's own, with gradients, and out of the way where they do not belong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from golden import image
from ops_dcnv3 import linear as onednn
from ops_dcnv3.linear import Linear, activated_linears, can_fuse

pytestmark = pytest.mark.skipif(not onednn.onednn_works(), reason="this PyTorch has no oneDNN linear")


@pytest.fixture(autouse=True)
def _take_the_fast_path_at_any_size(monkeypatch):
    monkeypatch.setattr(onednn, "_LEAST_WORK", 1)


def gradients(outputs, tensors):
    return torch.autograd.grad(sum(output.sin().sum() for output in outputs), tensors)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 5, 7), (0, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_equal_pytorchs(shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(7, 6, bias=bias), image(*shape, seed=1).requires_grad_()
    tensors = [x, *layer.parameters()]
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    for got, want in zip(gradients([layer(x)], tensors), gradients([expected], tensors)):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_layers_of_one_activated_input_equal_the_modules(approximate):
    torch.manual_seed(0)
    act, first, second = nn.GELU(approximate), Linear(8, 6), Linear(8, 5, bias=False)
    x = image(2, 3, 4, 8, seed=2).requires_grad_()
    tensors = [x, first.weight, first.bias, second.weight]
    got = activated_linears(x, act, first.weight, first.bias, second.weight, None)
    expected = [F.linear(act(x), layer.weight, layer.bias) for layer in (first, second)]
    for a, b in zip((*got, *gradients(got, tensors)), (*expected, *gradients(expected, tensors))):
        torch.testing.assert_close(a, b)


def test_only_the_input_before_the_activation_is_kept_for_backward():
    layer, kept = Linear(8, 6), []
    x = image(3, 8, seed=3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        activated_linears(x, nn.GELU(), layer.weight, layer.bias)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), layer.weight.data_ptr()}


def test_frozen_parameters_get_no_gradient():
    layer = Linear(8, 6).requires_grad_(False)
    x = image(3, 8, seed=4).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    assert layer.weight.grad is None and layer.bias.grad is None


def test_transposed_inputs_are_read_as_they_are():
    layer, x = Linear(8, 6), image(8, 5, 4, seed=5).permute(2, 1, 0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("change", ["dtype", "autocast", "trace", "vmap", "mode", "export"])
def test_anything_but_plain_float32_takes_pytorchs_layer(change, monkeypatch):
    def refuse(*args):
        raise AssertionError("oneDNN was called")

    layer, x = Linear(8, 6), image(4, 3, 8, seed=6)
    onednn.onednn_works()
    monkeypatch.setattr(onednn, "_matmul", refuse)
    with pytest.raises(AssertionError, match="oneDNN was called"):
        layer(x)
    if change == "dtype":
        layer.double()(x.double())
    elif change == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
    elif change == "trace":
        torch.jit.trace(layer, x, check_trace=False)
    elif change == "vmap":
        torch.vmap(layer)(x)
    elif change == "mode":
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 4 * 3 * 8 * 6
    else:
        torch.export.export(layer, (x,))


def test_hooked_or_replaced_modules_are_called():
    act, layer = nn.GELU(), Linear(8, 6)
    assert can_fuse(act, layer)
    assert not can_fuse(nn.ReLU(), layer) and not can_fuse(act, nn.Linear(8, 6))
    handle = layer.register_forward_hook(lambda *_: None)
    assert not can_fuse(act, layer)
    handle.remove()
    assert can_fuse(act, layer)


@pytest.mark.parametrize("grad", [True, False])
def test_the_mlp_equals_its_modules(grad):
    torch.manual_seed(0)
    first, act, second = Linear(6, 9), nn.GELU(), Linear(9, 6)
    x = image(2, 3, 4, 6, seed=7).requires_grad_(grad)
    tensors = [x, *first.parameters(), *second.parameters()]
    with torch.set_grad_enabled(grad):
        got = onednn.mlp(x, act, first.weight, first.bias, second.weight, second.bias)
        expected = F.linear(act(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
    torch.testing.assert_close(got, expected)
    if grad:
        for a, b in zip(gradients([got], tensors), gradients([expected], tensors)):
            torch.testing.assert_close(a, b)


def test_the_operator_that_compilers_see_is_sound():
    x, weight, bias = (t.requires_grad_() for t in (image(2, 3, 8, seed=8), image(6, 8, seed=9), image(6, seed=10)))
    torch.library.opcheck(torch.ops.ops_dcnv3.linear, (x, weight, bias))
    torch.library.opcheck(torch.ops.ops_dcnv3.linear, (x.detach().permute(1, 0, 2), weight.detach(), None))
    expected = F.linear(x, weight, bias)
    got = torch.ops.ops_dcnv3.linear(x, weight, bias)
    for a, b in zip((got, *gradients([got], [x, weight, bias])), (expected, *gradients([expected], [x, weight, bias]))):
        torch.testing.assert_close(a, b)
