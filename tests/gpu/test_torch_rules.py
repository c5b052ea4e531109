"""What PyTorch asks of an operator on a GPU: registration, compilation, determinism, autocast."""

import copy

import pytest
import torch
from gpu_cases import BACKEND, DEVICE, HALF, PLAIN, TOLERANCE, assert_close, draw, dtype_id, operator, reference

from ops_dcnv3 import DCNv3, backends, dcnv3


@pytest.fixture(autouse=True)
def _kernels():
    """The raw operators need the library, which is loaded at first use."""
    backends.select(BACKEND, DEVICE)


def test_the_cuda_library_is_what_gpu_tensors_use():
    assert backends.select("auto", DEVICE) == BACKEND


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_registered_operators_pass_opcheck(direction):
    inputs = draw(size=(2, 5, 4), depth=8)
    # Schema, autograd and fake registration, and tracing with and without symbolic sizes.
    if direction == "forward":
        leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
        torch.library.opcheck(torch.ops.ops_dcnv3.forward, (*leaves, *PLAIN))
    else:
        torch.library.opcheck(torch.ops.ops_dcnv3.backward, (inputs.grad_output, *inputs[:3], *PLAIN))


def test_the_compiled_operator_equals_the_reference():
    @torch.compile(fullgraph=True)
    def compiled(input, offset, mask):
        return 2 * dcnv3(input, 0.5 * offset, mask, groups=2, mask_is_logits=True, backend=BACKEND)

    inputs = draw(seed=3)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
    leaves[1] = (2 * inputs.offset).requires_grad_()
    output = compiled(*leaves)
    grads = torch.autograd.grad(output, leaves, inputs.grad_output)
    # The factors cancel, but for those of the gradients.
    results = (output.detach() / 2, grads[0] / 2, grads[1], grads[2] / 2)
    assert_close(results, reference(inputs, PLAIN), TOLERANCE[torch.float32])


@pytest.fixture
def determinism():
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_refuses_the_backward_pass_by_name(determinism):
    inputs = draw()
    determinism(True)
    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
    output = dcnv3(*leaves, groups=2, mask_is_logits=True, backend=BACKEND)
    with pytest.raises(RuntimeError, match=r"dcnv3[\s\S]*deterministic"):
        output.backward(inputs.grad_output)


def test_deterministic_mode_with_warn_only_warns_and_computes(determinism):
    inputs = draw()
    determinism(True, warn_only=True)
    with pytest.warns(UserWarning, match=r"dcnv3[\s\S]*deterministic"):
        results = operator(inputs, PLAIN)
    determinism(False)
    assert_close(results, reference(inputs, PLAIN), TOLERANCE[torch.float32])


def test_the_forward_pass_is_deterministic():
    inputs = draw(size=(4, 20, 20), dtype=torch.float16)
    first = operator(inputs, PLAIN)[0]
    assert all(torch.equal(operator(inputs, PLAIN)[0], first) for _ in range(5))


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_autocast_promotes_mixed_tensors_and_keeps_half_ones(dtype):
    inputs = draw()
    halves = inputs.map(lambda tensor: tensor.to(dtype))
    with torch.autocast(DEVICE.type, dtype=dtype):
        mixed = torch.ops.ops_dcnv3.forward(halves.input, *inputs[1:3], *PLAIN)
        half = torch.ops.ops_dcnv3.forward(*halves[:3], *PLAIN)
    assert mixed.dtype == torch.float32 and half.dtype == dtype
    expected = reference(inputs._replace(input=halves.input), PLAIN)[0]
    assert (mixed - expected).abs().max() / expected.abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_a_layer_under_autocast_has_the_gradients_of_float32(dtype):
    torch.manual_seed(0)
    layer = DCNv3(32, group=2, backend=BACKEND).to(DEVICE)
    torch.nn.init.normal_(layer.offset.weight, std=0.2)
    x = torch.randn(2, 9, 7, 32, device=DEVICE)

    def gradients(module, enabled):
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=enabled):
            output = module(x)
        assert output.dtype == (dtype if enabled else torch.float32)
        output.float().square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])

    grads = gradients(copy.deepcopy(layer), True), gradients(copy.deepcopy(layer), False)
    # Measured on the CPU: 0.99998 and 0.9987, by the rounding of the linear layers.
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > {torch.float16: 0.999, torch.bfloat16: 0.99}[dtype]
