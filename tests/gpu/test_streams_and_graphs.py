"""Side streams, CUDA graphs, and what a call does to other work on the device."""

import pytest
import torch
from gpu_cases import BACKEND, DEVICE, DTYPES, HALF, PLAIN, TOLERANCE, assert_close, draw, dtype_id, operator, reference

from ops_dcnv3 import DCNv3, dcnv3


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_the_kernels_run_on_the_current_stream(dtype):
    inputs = draw(dtype=dtype)
    late = inputs.map(torch.zeros_like)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The values arrive after some 50 ms: kernels on another stream would read zeros.
        torch.cuda._sleep(100_000_000)
        for tensor, value in zip(late, inputs, strict=True):
            tensor.copy_(value)
        results = operator(late, PLAIN)
    stream.synchronize()
    assert_close(results, reference(inputs, PLAIN), TOLERANCE[dtype])


def test_calls_on_several_streams_do_not_disturb_each_other():
    cases = [draw(seed=seed, size=(2, 20, 20)) for seed in range(4)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    results = []
    for _ in range(5):
        results.clear()
        for stream, inputs in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                results.append(operator(inputs, PLAIN))
    torch.cuda.synchronize()
    for inputs, result in zip(cases, results, strict=True):
        assert_close(result, reference(inputs, PLAIN), TOLERANCE[torch.float32])


def test_neither_pass_waits_for_the_device():
    inputs = draw()
    operator(inputs, PLAIN)  # loads and builds what is missing
    torch.cuda.set_sync_debug_mode("error")
    try:
        operator(inputs, PLAIN)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(step, *changing):
    """Capture `step()` in a graph; return its results and a function that copies new values in and replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay(*values):
        with torch.no_grad():
            for tensor, value in zip(changing, values, strict=True):
                tensor.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        return results

    return replay


@pytest.mark.parametrize("logits", [False, True], ids=["weights", "logits"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_a_captured_forward_follows_changed_inputs(dtype, logits):
    geometry = PLAIN._replace(mask_is_logits=logits)
    tensors = [tensor.clone() for tensor in draw(dtype=dtype)[:3]]
    replay = captured(lambda: dcnv3(*tensors, groups=2, mask_is_logits=logits, backend=BACKEND), *tensors)
    for seed in (1, 2):
        inputs = draw(dtype=dtype, seed=seed)
        torch.testing.assert_close(replay(*inputs[:3]), operator(inputs, geometry)[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_a_captured_forward_and_backward_follow_changed_inputs(dtype):
    leaves = [tensor.clone().requires_grad_() for tensor in draw(dtype=dtype)[:3]]
    grad_output = torch.zeros_like(draw(dtype=dtype).grad_output)

    def step():
        output = dcnv3(*leaves, groups=2, mask_is_logits=True, backend=BACKEND)
        return output.detach(), *torch.autograd.grad(output, leaves, grad_output)

    replay = captured(step, *leaves, grad_output)
    for seed in (1, 2):  # twice, so that sums which a replay does not clear show
        inputs = draw(dtype=dtype, seed=seed)
        assert_close(replay(*inputs), reference(inputs, PLAIN), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_a_graphed_layer_trains_under_autocast_as_the_layer_does(dtype):
    torch.manual_seed(0)
    layer = DCNv3(32, group=2, backend=BACKEND).to(DEVICE)
    torch.nn.init.normal_(layer.offset.weight, std=0.5)
    sample = torch.randn(2, 8, 8, 32, device=DEVICE, requires_grad=True)
    x = torch.randn(2, 8, 8, 32, device=DEVICE, requires_grad=True)

    def gradients(module):
        layer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=dtype, cache_enabled=False):
            output = module(x)
        output.float().square().mean().backward()
        return [output.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]

    expected = gradients(layer)
    with torch.autocast("cuda", dtype=dtype, cache_enabled=False):
        graphed = torch.cuda.make_graphed_callables(layer, (sample,))
    for got, wanted in zip(gradients(graphed), expected, strict=True):
        assert (got - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()
