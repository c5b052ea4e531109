"""The LayerNorm kernels on a GPU: against their definition in double, and in networks against PyTorch's LayerNorm."""

import copy

import pytest
import torch
from norm_cases import FORMS, TYPES, Case, assert_agrees, computed
from torch import nn

from golden import fill, golden_model, relative_error
from internimage import InternImage
from ops_dcnv3 import backends, norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
DEVICE = torch.device("cuda", 0)
MODELS = ["tiny_224", "mini_l_64", "mini_h_96"]


@pytest.fixture(autouse=True)
def _kernels():
    assert backends.select("auto", DEVICE) == "cuda"


@pytest.fixture
def plain(monkeypatch):
    """Calls a function with PyTorch's LayerNorm in place of the kernels."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(norm, "_has_kernels", lambda device: False)
            return function()

    return call


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("rows", [1, 5, 3137])
@pytest.mark.parametrize("channels", [8, 48, 64, 96, 112, 320, 512, 1000, 1024, 2560, 4096])
@pytest.mark.parametrize("form", FORMS)
def test_kernels_agree_with_the_definition(form, channels, rows, types):
    case = Case(form, channels, rows, images=3, types=types)
    assert_agrees(case, case.tensors("cuda"))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_bit_equal_from_run_to_run(form):
    case = Case(form, 64, 50176, images=2, types="mixed bfloat16")
    tensors = case.tensors("cuda")
    first, second = (results + gradients for results, gradients in (computed(case, tensors, 1e-6) for _ in range(2)))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second))


def test_tensors_over_two_to_the_31_elements_are_normalised_to_their_end():
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of free GPU memory")
    x = torch.zeros(2**31 // 64 + 4096, 64, dtype=torch.bfloat16, device=DEVICE)
    x[-4096:].normal_()
    layer = nn.LayerNorm(64, device=DEVICE, dtype=torch.bfloat16)
    out = norm.layer_norm(x, layer)
    torch.testing.assert_close(out[-4096:], layer(x[-4096:]), rtol=2e-2, atol=2e-2)
    assert not out[:-4096].any()


def test_kernels_run_on_the_current_stream_and_in_graphs():
    layer, x = nn.LayerNorm(64, device=DEVICE), torch.randn(4096, 64, device=DEVICE)
    norm.layer_norm(x, layer)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = norm.layer_norm(x, layer)
    x.copy_(torch.randn_like(x) * 3 + 1)
    graph.replay()
    torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-4)


def model_of(name: str, **options) -> tuple[InternImage, torch.Tensor]:
    golden = golden_model(name)
    return fill(InternImage(**{**golden.kwargs, **options})).to(DEVICE), golden.input.to(DEVICE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_models_equal_those_with_pytorchs_layer_norm(plain, name):
    model, x = model_of(name)
    model.eval()
    logits = model(x)
    assert relative_error(logits, plain(lambda: model(x))) < 1e-4
    assert relative_error(logits, torch.from_numpy(golden_model(name).outputs["logits"]).to(DEVICE)) < 1e-4


def step(model: InternImage, x: torch.Tensor, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """Logits and gradients of a training step."""
    torch.manual_seed(0)
    with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
        logits = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(logits.float().square().mean(), parameters, allow_unused=True)
    return [logits.detach().float(), torch.cat([g.flatten().float() for g in gradients if g is not None])]


@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.5}], ids=["released", "layer scale"])
@pytest.mark.parametrize("name", MODELS)
def test_training_steps_equal_those_with_pytorchs_layer_norm(plain, name, options):
    model, x = model_of(name, drop_path_rate=0.3, **options)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    exact, exact_gradients = plain(lambda: step(model, x, None))
    logits, gradients = step(model, x, None)
    assert relative_error(logits, exact) < 1e-4
    assert ((gradients - exact_gradients).norm() / exact_gradients.norm()).item() < 1e-3
    for dtype in (torch.bfloat16, torch.float16):
        ours, theirs = step(model, x, dtype), plain(lambda dtype=dtype: step(model, x, dtype))
        for mine, other, right in zip(ours, theirs, (exact, exact_gradients)):
            errors = [((value - right).norm() / right.norm()).item() for value in (mine, other)]
            assert errors[0] < 1.5 * errors[1] + 1e-2


@torch.no_grad()
def test_networks_launch_one_kernel_for_a_norm_with_its_neighbours(plain):
    model, x = model_of("tiny_224")
    model = copy.deepcopy(model).bfloat16().eval()

    def kernels() -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            model(x.bfloat16())
        return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]

    model(x.bfloat16())
    ours, theirs = kernels(), plain(kernels)
    assert not [name for name in ours if "layer_norm_kernel" in name]
    assert len([name for name in ours if "norm::forward_kernel" in name]) == 99
    # The residual sums, the GELUs of the depthwise branches and the stem, and the biases before them are gone.
    assert len(ours) <= len(theirs) - 2 * 30
