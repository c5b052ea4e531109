"""The LayerNorm kernels, executed on the CPU under emulation through their binding, alone and in whole networks."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cuda_emulation_build import COMPILER, build
from norm_cases import FORMS, TYPES, Case, assert_agrees, computed
from torch import nn

from internimage import InternImage
from ops_dcnv3 import norm
from ops_dcnv3.modules import build_norm_layer

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")
CHANNELS = (8, 48, 64, 112, 320, 1000, 2560)


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
    monkeypatch.setattr(norm, "_IS_OURS", "is_cpu")
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
@pytest.mark.parametrize("channels", [64, 112, 320])
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
    with pytest.raises(RuntimeError, match="multiple of 8 up to 4096"):
        torch.ops.ops_dcnv3.norm_forward(wide, None, wide[0], wide[0], None, None, 1e-6, 0, *types, True)


@needs_compiler
@pytest.mark.slow
def test_no_kernel_touches_memory_outside_its_tensors():
    program = build("emulated_norm_memory_check.cpp", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    finished = subprocess.run([program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "384 runs\n"


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


# Measured: logits up to 5e-7, gradients up to 2e-5 from those of PyTorch's LayerNorm.
@needs_compiler
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_with_the_kernels(request, name, drop_path_rate):
    model = tiny(drop_path_rate=drop_path_rate, **NETWORKS[name])
    plain = run(model)
    calls = request.getfixturevalue("on_gpu")
    assert_same(model, plain, calls, 1e-5)


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_under_autocast_computes_the_same_within_the_half_types_rounding(request, name):
    model = tiny(drop_path_rate=0.5, **NETWORKS[name])
    exact, plain = run(model), run(model, autocast=True)
    request.getfixturevalue("on_gpu")
    ours = run(model, autocast=True)
    # PyTorch's own network under autocast is as far from float32.
    assert difference(ours[0], exact[0]) < 1.5 * difference(plain[0], exact[0]) + 2e-3
    flat = [torch.cat([gradients[key].flatten() for key in exact[1]]) for _, gradients in (ours, plain, exact)]
    assert difference(flat[0], flat[2]) < 1.5 * difference(flat[1], flat[2]) + 1e-2


@needs_compiler
def test_half_precision_networks_take_the_kernels_too(request):
    model = tiny(layer_scale=0.7).bfloat16().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        plain = model(images)
        calls = request.getfixturevalue("on_gpu")
        ours = model(images)
    assert ours.dtype == torch.bfloat16 and difference(ours, plain) < 2e-2
    # A norm after every residual sum but the first of a level, and the depthwise branches and the stem with their GELU.
    assert calls == {"plain": 4 + 4, "gelu": 7 + 1, "post": 0, "pre": 2 * 7}


@needs_compiler
def test_a_model_rewritten_for_inference_takes_the_kernels_too(request):
    model = tiny(layer_scale=0.7).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(images)
        calls = request.getfixturevalue("on_gpu")
        ours = model.optimize_for_inference()(images)
    assert difference(ours, plain) < 1e-5
    assert calls == {"plain": 4 + 4, "gelu": 7 + 1, "post": 0, "pre": 2 * 7}


@needs_compiler
def test_gradient_checkpointing_gives_the_same_gradients(on_gpu):
    model = tiny(drop_path_rate=0.5)
    _, gradients = run(model)
    model.set_grad_checkpointing()
    logits, recomputed = run(model)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_hooks_see_the_modules_that_they_stand_on(on_gpu):
    model = tiny(drop_path_rate=0.5)
    block = model.levels[2].blocks[1]
    watched = [block, block.norm1[0], block.norm2, block.drop_path, block.dcn.dw_conv, block.dcn.dw_conv[1], block.mlp]
    watched += [model.levels[2].norm, model.patch_embed.norm1[1], model.patch_embed.act]
    expected, _ = run(model)
    seen = []
    handles = [m.register_forward_hook(lambda module, *_: seen.append(module)) for m in watched]
    logits, _ = run(model)
    assert difference(logits, expected) < 1e-5
    assert {id(module) for module in seen} == {id(module) for module in watched}
    for handle in handles:
        handle.remove()
    seen.clear()
    run(model)
    assert not seen


@needs_compiler
def test_compilers_exporters_transforms_and_other_types_take_the_plain_form(on_gpu):
    layer = build_norm_layer(8)
    x = torch.randn(2, 8)
    exported = torch.export.export(layer, (x,))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [torch.ops.aten.layer_norm.default]
    model = tiny(drop_path_rate=0.5)
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(1, 3, 64, 64))
    torch.jit.trace(layer, x, check_trace=False)
    torch.func.vmap(layer)(x)
    torch.func.grad(lambda x: layer(x).square().sum())(x)
    with torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x, x))
    layer.double()(x.double())
    with torch._subclasses.FakeTensorMode() as mode:
        build_norm_layer(8)(mode.from_tensor(x))
    build_norm_layer(4104)(torch.randn(1, 4104))
    layer = nn.Sequential(norm.LayerNorm(8, elementwise_affine=False))
    layer(x)
    assert sum(on_gpu.values()) == 0


def test_cpu_tensors_take_pytorchs_layer_norm():
    x = torch.randn(2, 3, 8)
    layer, plain = norm.LayerNorm(8), nn.LayerNorm(8)
    assert torch.equal(layer(x), plain(x)) and not norm.serves(x, layer)
    assert list(layer.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("scale_by_keep", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_drop_path_draws_the_same_numbers_as_timm(rate, scale_by_keep):
    from timm.layers import DropPath

    module = DropPath(rate, scale_by_keep)
    x = torch.randn(16, 2, 2, 3)
    torch.manual_seed(0)
    dropped, state = module(x), torch.get_rng_state()
    torch.manual_seed(0)
    factors = norm.drop_path_factors(module, x)
    assert torch.equal(dropped, x if factors is None else x * factors)
    assert torch.equal(torch.get_rng_state(), state)
    assert norm.drop_path_factors(module.eval(), x) is None
