"""The LayerNorm kernels, executed on the CPU under emulation through their binding, alone and in whole networks."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cuda_emulation_build import COMPILER, build
from norm_cases import FORMS, TOLERANCE, TYPES, Case, assert_agrees, computed
from torch import nn


from internimage import InternImage
from ops_dcnv3 import norm
from ops_dcnv3.module import build_norm_layer

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")
CHANNELS = (1, 3, 48, 64, 96, 112, 320, 512, 1000, 1024, 2560)


@pytest.fixture(scope="module")
def library():
    """The operators of ops_dcnv3.norm for CPU tensors: the binding over emulated kernels."""
    folder = Path(torch.__file__).parent
    flags = ["-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(folder / "include")]
    links = {"shared": True, "libraries": ["-ltorch_cpu"]}
    path = build("emulated_norm_binding.cpp", *flags, f"-L{folder / 'lib'}", **links)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@pytest.fixture
def poisoned(library):
    """New tensors are filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def on_gpu(library, monkeypatch):
    """Networks on the CPU take the path of a GPU with the compiled library; counts the calls of kernels by form."""
    monkeypatch.setattr(norm, "_DEVICE", "cpu")
    monkeypatch.setattr(norm, "_has_kernels", lambda device: True)
    calls, apply = dict.fromkeys(FORMS, 0), norm._apply

    def counted(*arguments):
        calls[list(FORMS)[arguments[5]]] += 1
        return apply(*arguments)

    monkeypatch.setattr(norm, "_apply", counted)
    return calls


@needs_compiler
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("form", FORMS)
def test_emulated_kernels_agree_with_the_definition(poisoned, form, channels, rows):
    case = Case(form, channels, rows, images=2)
    assert_agrees(case, case.tensors(), eps=1e-6)


@needs_compiler
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("channels", [3, 64, 112, 320])
@pytest.mark.parametrize("form", FORMS)
def test_emulated_kernels_agree_with_the_definition_in_all_types(poisoned, form, channels, types):
    case = Case(form, channels, 197 if channels < 320 else 37, images=3, types=types)
    assert_agrees(case, case.tensors(), eps=1e-6)


@needs_compiler
@pytest.mark.parametrize("types", ["float32", "mixed bfloat16"])
@pytest.mark.parametrize(("extra", "keep"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("form", ["gelu", "post", "pre"])
def test_layer_scale_drop_path_and_bias_may_be_absent(poisoned, form, extra, keep, types):
    case = Case(form, 64, 9, images=2, types=types, extra=extra, keep=keep)
    assert_agrees(case, case.tensors())


@needs_compiler
@pytest.mark.parametrize("channels", [64, 320])
@pytest.mark.parametrize("form", FORMS)
def test_results_and_gradients_do_not_depend_on_the_order_of_threads(library, form, channels):
    case = Case(form, channels, 53)
    runs = []
    for seed in range(3):
        library.emulated_norm_seed(seed)
        results, gradients = computed(case, case.tensors(), 1e-6)
        runs.append([t for t in results + gradients if t is not None])
    for other in runs[1:]:
        assert all(map(torch.equal, other, runs[0]))


@needs_compiler
def test_unused_results_have_no_gradient(library):
    case = Case("pre", 64, 7)
    x, residual, weight, bias, extra, keep, grad, grad_sum = case.tensors()
    layer = nn.LayerNorm(64)
    for used in (0, 1):
        x, residual = x.detach().requires_grad_(), residual.detach().requires_grad_()
        result = norm.pre_norm(residual, x, layer, extra, keep)[used]
        plain = residual + extra * keep.view(-1, 1, 1) * x
        plain = (plain, layer(plain))[used]
        ours, theirs = (torch.autograd.grad(y, (x, residual), grad) for y in (result, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_strided_and_shifted_tensors_and_large_offsets_are_read_correctly(library):
    layer = nn.LayerNorm(48)
    x = torch.randn(2, 48, 5).transpose(1, 2)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(2, 5, 48)
    assert shifted.data_ptr() % 16
    for tensor in (x, shifted, x + 1000):
        exact = F.layer_norm(tensor.double(), (48,), eps=layer.eps).float()
        torch.testing.assert_close(norm.layer_norm(tensor, layer), exact, rtol=0, atol=2e-4)


@needs_compiler
def test_second_derivatives_are_refused(library):
    x = torch.randn(3, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(norm.layer_norm(x, nn.LayerNorm(8)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_compiler
def test_raw_operators_pass_opcheck_and_refuse_what_does_not_fit(library):
    x, weight = torch.randn(2, 3, 16), torch.randn(16)
    types = (torch.float32, torch.bfloat16)
    for form, residual in ((0, None), (3, x.bfloat16())):
        call = (x, residual, weight, weight, None, None, 1e-6, form, *types, True)
        torch.library.opcheck(torch.ops.ops_dcnv3.norm_forward, call)
    out, total, stats = torch.ops.ops_dcnv3.norm_forward(*call)
    call = (out, None, total, stats, weight, weight, weight, None, x, 3, torch.float32, True)
    torch.library.opcheck(torch.ops.ops_dcnv3.norm_backward, call)
    for residual, small, keep, form, message in (
        (None, weight[:8], None, 0, "weight must have 16 elements"),
        (x, weight, torch.ones(4), 2, "keep must have a number for every image; got 4 for 6 rows"),
        (None, weight, None, 2, "have a residual"),
        (None, weight, None, 4, "form must be in 0 to 3"),
        (None, weight.double(), None, 0, "expect float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.ops_dcnv3.norm_forward(x, residual, small, weight, None, keep, 1e-6, form, *types, True)
    wide = torch.randn(1, 4104)
    with pytest.raises(RuntimeError, match="1 to 4096 channels"):
        torch.ops.ops_dcnv3.norm_forward(wide, None, wide[0], wide[0], None, None, 1e-6, 0, *types, True)


@needs_compiler
@pytest.mark.slow
def test_no_kernel_touches_memory_outside_its_tensors():
    program = build("emulated_norm_memory_check.cpp", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    finished = subprocess.run([program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "576 runs\n"


# ---- in networks ----------------------------------------------------------------------------------------------------

TINY = {"channels": 16, "depths": (2, 1, 3, 1), "groups": (1, 2, 4, 8), "num_classes": 5}
NETWORKS = {
    "pre-norm": {},
    "pre-norm, layer scale": {"layer_scale": 0.7},
    "post-norm": {"post_norm": True},
    "post-norm, layer scale": {"post_norm": True, "layer_scale": 0.7},
    "res-post-norm, level 2 post norms": {
        "res_post_norm": True,
        "level2_post_norm": True,
        "level2_post_norm_block_ids": (1,),
        "center_feature_scale": True,
        "dw_kernel_size": 5,
    },
    "pre-norm, level 2 post norms": {"level2_post_norm": True, "level2_post_norm_block_ids": (0, 2)},
}


def tiny(**options) -> InternImage:
    torch.manual_seed(0)
    model = InternImage(**TINY, **options)
    for parameter in model.parameters():  # norms that do something, offsets that are not zero
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    for module in model.modules():  # in training, the head's would hide the last level's bias
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def run(model: InternImage, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, 64, 64)
    model.zero_grad()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images)
    logits.float().square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-6)).item()


def assert_same(model: InternImage, plain, calls: dict[str, int], tolerance: float, **options) -> None:
    logits, gradients = run(model, **options)
    assert sum(calls.values()) > 0
    assert difference(logits, plain[0]) < tolerance
    assert gradients.keys() == plain[1].keys()
    errors = {name: difference(gradient, plain[1][name]) for name, gradient in gradients.items()}
    assert max(errors.values()) < 20 * tolerance, max(errors.items(), key=lambda item: item[1])


@needs_compiler
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_with_the_kernels(request, name, drop_path_rate):
    model = tiny(drop_path_rate=drop_path_rate, **NETWORKS[name])
    plain = run(model)
    calls = request.getfixturevalue("on_gpu")
    assert_same(model, plain, calls, 1e-5)
