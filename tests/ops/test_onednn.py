"""Linear layers on oneDNN: equal to PyTorch's own, with gradients, and out of the way where they do not belong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from golden import image
from ops_dcnv3 import onednn
from ops_dcnv3.onednn import Linear, activated_linears, can_fuse

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


@pytest.fixture
def recomputing(monkeypatch):
    """What a GPU's tensors go through, on the CPU: PyTorch's own products and a GELU computed again in backward."""
    monkeypatch.setattr(onednn, "_RECOMPUTING", ("cpu",))
    monkeypatch.setattr(onednn, "_product", lambda *tensors: F.linear)


def activated_case(dtype=torch.float32, parameter_dtype=None):
    """An input, the parameters of three layers (the second without bias), and both forms of the computation."""
    parameter_dtype = parameter_dtype or dtype
    x = image(2, 5, 4, 8, seed=11).to(dtype).requires_grad_()
    parameters = [
        image(*shape, seed=12 + i).to(parameter_dtype).requires_grad_()
        for i, shape in enumerate([(6, 8), (6,), (5, 8), (3, 8), (3,)])
    ]
    layers = [*parameters[:3], None, *parameters[3:]]

    def ours():
        return activated_linears(x, nn.GELU(), *layers)

    def plain():
        return [F.linear(F.gelu(x), weight, bias) for weight, bias in zip(layers[::2], layers[1::2])]

    return x, parameters, ours, plain


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_recomputed_layers_equal_the_plain_ones_in_every_type(dtype, recomputing):
    x, parameters, ours, plain = activated_case(dtype)
    got, expected = ours(), plain()
    assert got[0].grad_fn.name() == "_ActivatedLinearsBackward"
    for a, b in zip(got, expected):
        assert a.dtype == dtype and torch.equal(a, b)
    # Sums over three products and 40 rows, each rounded to the type: some units of its precision.
    rounding = 4 * torch.finfo(dtype).eps
    for a, b in zip(gradients(got, [x, *parameters]), gradients(expected, [x, *parameters])):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding * b.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("input_dtype", [torch.float32, "autocast"])
def test_recomputed_layers_compute_products_in_autocasts_type(dtype, input_dtype, recomputing):
    # A LayerNorm gives float32 under autocast, a linear layer autocast's own type.
    x, parameters, ours, plain = activated_case(dtype if input_dtype == "autocast" else input_dtype, torch.float32)
    with torch.autocast("cpu", dtype):
        got, expected = ours(), plain()
    assert got[0].grad_fn.name() == "_ActivatedLinearsBackward"
    for a, b in zip(got, expected):
        assert a.dtype == dtype and torch.equal(a, b)
    rounding = 4 * torch.finfo(dtype).eps
    for tensor, a, b in zip([x, *parameters], *(gradients(each, [x, *parameters]) for each in (got, expected))):
        assert a.dtype == tensor.dtype
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding * b.abs().max().item())


def test_recomputing_under_autocast_leaves_later_gradients_of_the_same_weights_alone(recomputing):
    weight, x = nn.Parameter(image(6, 8, seed=20)), image(3, 8, seed=21).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        activated_linears(x, nn.GELU(), weight, None)
        F.linear(x, weight).float().sum().backward()  # autocast remembers casts of weights until it ends
    assert weight.grad is not None


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_layers_keep_their_input_and_weights_only(autocast, recomputing):
    x, parameters, ours, plain = activated_case(parameter_dtype=torch.float32)

    def kept(compute):
        found = {}
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            compute()
        weights = (*parameters, *(p.bfloat16() for p in parameters))
        return [t for t in found.values() if t.shape not in {weight.shape for weight in weights}]

    assert [t.data_ptr() for t in kept(ours)] == [x.data_ptr()]
    assert sum(t.nbytes for t in kept(plain)) > x.nbytes  # the check sees the activated input where it is kept


def test_recomputed_layers_can_be_checkpointed(recomputing):
    x, parameters, ours, plain = activated_case()
    got = torch.utils.checkpoint.checkpoint(ours, use_reentrant=False)
    for a, b in zip(*(gradients(each, [x, *parameters]) for each in (got, plain()))):
        torch.testing.assert_close(a, b)


def test_recomputed_layers_refuse_second_derivatives(recomputing):
    x, _, ours, _ = activated_case()
    (grad,) = torch.autograd.grad(ours()[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("change", ["compile", "functorch", "forward mode", "dispatch mode", "one dimension"])
def test_program_transformations_see_the_plain_form(change, recomputing, monkeypatch):
    def refuse(*args):
        raise AssertionError("the autograd function was called")

    x, parameters, ours, plain = activated_case()
    weight, bias = parameters[:2]
    monkeypatch.setattr(onednn, "_recomputed", refuse)
    with pytest.raises(AssertionError, match="the autograd function"):
        ours()

    def first(tensor):
        return activated_linears(tensor, nn.GELU(), weight, bias)[0]

    expected = plain()[0]
    if change == "compile":
        got = torch.compile(first, fullgraph=True, backend="aot_eager")(x)
    elif change == "functorch":
        torch.testing.assert_close(
            torch.func.grad(lambda t: first(t).sum())(x), torch.autograd.grad(expected.sum(), x)[0]
        )
        return
    elif change == "forward mode":
        with torch.autograd.forward_ad.dual_level():
            got = torch.autograd.forward_ad.unpack_dual(
                first(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            ).primal
    elif change == "dispatch mode":
        with FlopCounterMode(display=False) as counter:
            got = first(x)
        assert counter.get_total_flops() == 2 * 40 * 8 * 6
    else:
        got, expected = first(x[0, 0, 0]), expected[0, 0, 0]
    torch.testing.assert_close(got, expected)


def test_mixed_types_without_autocast_stay_an_error(recomputing):
    _, _, ours, _ = activated_case(torch.float32, torch.bfloat16)
    with pytest.raises(RuntimeError, match="same dtype"):
        ours()


def test_a_tensor_of_another_device_is_turned_away_before_any_other_check(monkeypatch):
    def refuse(*args):
        raise AssertionError("a check for the CPU was made")

    for name in ("is_plain", "onednn_works"):
        monkeypatch.setattr(onednn, name, refuse)
    x, conv = torch.empty(2, 3, 3, 8, device="meta"), nn.Conv2d(8, 8, 3, padding=1, device="meta")
    first, second = (Linear(8, 8, device="meta") for _ in range(2))
    assert onednn.linear(x, first.weight, first.bias).shape == x.shape
    assert onednn.mlp(x, nn.GELU(), first.weight, first.bias, second.weight, second.bias).shape == x.shape
    assert activated_linears(x, nn.GELU(), first.weight, first.bias)[0].shape == x.shape
    assert onednn.PackedLinear(first, nn.GELU())(x).shape == x.shape
    assert onednn.PackedConv2d(conv)(x.permute(0, 3, 1, 2)).shape == (2, 8, 3, 3)
