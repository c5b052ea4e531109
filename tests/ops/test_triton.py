"""The Triton kernel without a GPU: interpreted, compiled ahead of time, and as torch.compile sees it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from golden import image, operator_case, relative_error
from ops_dcnv3 import backends, dcnv3
from ops_dcnv3.reference import Geometry, gather_core

triton = pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
# Run in a process of its own: TRITON_INTERPRET must be set before triton is imported.
INTERPRETED = """
import sys, torch
import ops_dcnv3.triton
results = []
for geometry, tensors, grad_output in torch.load(sys.argv[1]):
    leaves = [tensor.requires_grad_() for tensor in tensors]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = torch.ops.ops_dcnv3.triton_forward(*leaves, *geometry)
    grads = torch.autograd.grad(output, leaves, grad_output) if output.numel() else ()
    same = [any(t is leaf for leaf in leaves) for t in saved]
    results.append((output.detach(), grads, same))
torch.save(results, sys.argv[2])
"""
# One rounding of the output.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}


def case(geometry, size, depth, dtype, seed=0, spread=2.0):
    """Static arguments, (input, offset, mask) and the output's gradient."""
    batch, height, width = size
    g = Geometry(*geometry)
    out = g.output_size(height, width)
    tensors = (
        image(batch, height, width, g.groups * depth, seed=seed),
        spread * image(batch, *out, g.groups * g.points * 2, seed=seed + 1),
        image(batch, *out, g.groups * g.points, seed=seed + 2),
    )
    grad_output = image(batch, *out, g.groups * depth, seed=seed + 3)
    return tuple(g), [tensor.to(dtype) for tensor in tensors], grad_output.to(dtype)


PLAIN = (3, 3, 1, 1, 1, 1, 1, 1)
CASES = {
    "float64": case((*PLAIN, 2, 1.0, False, True), (2, 5, 4), 16, torch.float64),
    "float32": case((*PLAIN, 2, 1.0, False, True), (2, 5, 4), 16, torch.float32),
    "bfloat16": case((*PLAIN, 2, 1.0, False, True), (2, 5, 4), 16, torch.bfloat16),
    "float16": case((*PLAIN, 2, 1.0, False, True), (2, 5, 4), 16, torch.float16),
    "weights, not logits": case((*PLAIN, 3, 1.0, False, False), (1, 6, 7), 4, torch.float32),
    "rectangles": case((2, 3, 1, 2, 0, 1, 2, 1, 2, 0.7, False, True), (2, 7, 5), 5, torch.float32),
    "no centre, float16": case((*PLAIN, 1, 1.5, True, True), (1, 4, 6), 12, torch.float16),
    "one channel": case((*PLAIN, 3, 1.0, False, True), (1, 1, 5), 1, torch.float32),
    "more channels than a block": case((1, 2, 1, 1, 0, 0, 1, 1, 1, 1.0, False, True), (1, 3, 4), 70, torch.float32),
    "far outside": case((*PLAIN, 1, 1.0, False, True), (1, 4, 4), 8, torch.float32, spread=1e12),
    "empty batch": case((*PLAIN, 1, 1.0, False, True), (0, 4, 4), 8, torch.float32),
}


def strided(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Results of all cases, of the stored ones of the original project, and of two special inputs."""
    folder = tmp_path_factory.mktemp("triton")
    cases = dict(CASES)
    for index in range(6):
        stored = operator_case(index)
        cases[index] = (tuple(stored.geometry), [t.float() for t in stored.inputs], stored.grad_output.float())
    geometry, tensors, grad_output = CASES["rectangles"]
    cases["strided"] = (geometry, [strided(t) for t in tensors], strided(grad_output))
    tensors = [tensor.clone() for tensor in tensors]
    for index, value in enumerate(("nan", "inf", "-inf")):
        tensors[1][0, index, 0, 0] = tensors[1][0, index, 1, 3] = float(value)
    cases["not finite"] = (geometry, tensors, grad_output)
    torch.save(list(cases.values()), folder / "cases.pt")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, str(folder / "cases.pt"), str(folder / "results.pt")]
    subprocess.run(command, check=True, env=environment)
    return dict(zip(cases, torch.load(folder / "results.pt"), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernel_equals_the_gather_core(interpreted, name):
    geometry, tensors, grad_output = CASES[name]
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    expected = gather_core(*leaves, Geometry(*geometry))
    output, grads, _ = interpreted[name]
    assert output.shape == expected.shape and output.dtype == tensors[0].dtype
    if output.numel():
        scale = max(expected.abs().max().item(), 1.0)
        assert (output.double() - expected).abs().max() / scale < TOLERANCE[output.dtype]
        expected_grads = torch.autograd.grad(expected, leaves, grad_output.double())
        # Half-precision offsets put some samples on whole pixels, where the offset's gradient jumps: left out there.
        for index in (0, 2) if output.element_size() == 2 else (0, 1, 2):
            scale = max(expected_grads[index].abs().max().item(), 1.0)
            assert (grads[index].double() - expected_grads[index]).abs().max() / scale < 2 * TOLERANCE[output.dtype]


@pytest.mark.parametrize("index", range(6))
def test_the_interpreted_kernel_equals_the_original_project(interpreted, index):
    stored = operator_case(index)
    output, grads, _ = interpreted[index]
    for actual, expected in zip((output, *grads), (stored.output, *stored.grads), strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_strided_tensors_give_the_same_result(interpreted):
    torch.testing.assert_close(interpreted["strided"][0], interpreted["rectangles"][0], rtol=0, atol=0)


def test_points_that_are_not_finite_count_as_ones_far_outside(interpreted):
    geometry, tensors, grad_output = CASES["rectangles"]
    leaves = [tensor.clone() for tensor in tensors]
    for row in range(3):
        leaves[1][0, row, 0, 0] = leaves[1][0, row, 1, 3] = 1e3
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    expected = gather_core(*leaves, Geometry(*geometry))
    expected_grads = torch.autograd.grad(expected, leaves, grad_output.double())
    output, grads, _ = interpreted["not finite"]
    for actual, wanted in zip((output, *grads), (expected, *expected_grads), strict=True):
        assert relative_error(actual, wanted) < 2 * TOLERANCE[torch.float32]


def test_only_input_offset_and_mask_are_saved_for_backward(interpreted):
    assert interpreted["float32"][2] == [True, True, True]


def compiled(arch, dtype, geometry, depth, ones=()):
    """The kernel for one architecture; integer arguments named in `ones` are constant 1, as Triton specialises them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ops_dcnv3 import triton as triton_kernel

    kernel = triton_kernel.dcnv3_forward_kernel
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
    itemsize = {"fp64": 8, "fp32": 4}.get(dtype, 2)
    values = {**triton_kernel.constants(geometry, depth, itemsize), **dict.fromkeys(ones, 1)}
    signature = {
        name: f"*{dtype}" if name in pointers else "constexpr" if name in values else "i32" for name in kernel.arg_names
    }
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, signature, constexprs=values, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32))


LOGITS = Geometry(*PLAIN, 4, 1.0, False, True)
WEIGHTS = Geometry(2, 2, 1, 2, 0, 0, 1, 1, 3, 0.5, False, False)


@pytest.mark.parametrize(
    ("arch", "dtype", "geometry", "depth", "ones"),
    [
        (80, "fp16", LOGITS, 16, ()),
        (90, "bf16", LOGITS, 16, ()),
        (100, "fp32", LOGITS, 16, ()),
        (80, "fp64", WEIGHTS, 5, ("height", "width", "out_height", "out_width", "pixels")),
        (90, "fp32", WEIGHTS, 70, ("height",)),
        (100, "fp16", WEIGHTS._replace(kernel_h=3, kernel_w=3, remove_center=True), 1, ("out_width",)),
    ],
)
def test_the_kernel_compiles_to_machine_code_without_a_gpu(arch, dtype, geometry, depth, ones, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(arch, dtype, geometry, depth, ones)
    assert len(kernel.asm["cubin"]) > 1000
    ptx = kernel.asm["ptx"]
    assert f".target sm_{arch}" in ptx
    assert kernel.metadata.shared == 0
    if depth == 16:
        # Four corners of nine points, each one 128-bit load.
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 36


def test_a_compiled_graph_holds_the_kernel_and_its_fused_backward(monkeypatch):
    """The graph that inductor gets. The forward part cannot run here; the backward part does, on the saved tensors."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from triton.backends.compiler import GPUTarget

    import ops_dcnv3.triton  # noqa: F401

    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", target)
    geometry, tensors, grad_output = CASES["float32"]
    graphs = {}

    def forward(graph, _):
        graphs["forward"] = graph

        def run(*arguments):
            known = dict(zip(graph.graph.find_nodes(op="placeholder"), arguments))
            results = graph.graph.find_nodes(op="output")[0].args[0]
            return [known.get(node, torch.zeros(node.meta["val"].shape)) for node in results]

        return make_boxed_func(run)

    def backward(graph, _):
        graphs["backward"] = graph
        return make_boxed_func(graph.forward)

    operator = torch.compile(
        lambda *leaves: torch.ops.ops_dcnv3.triton_forward(*leaves, *geometry),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=forward, bw_compiler=backward),
    )
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    grads = torch.autograd.grad(operator(*leaves), leaves, grad_output)
    expected = torch.autograd.grad(gather_core(*leaves, Geometry(*geometry)), leaves, grad_output)
    torch.testing.assert_close(grads, expected)

    launches = graphs["forward"].graph.find_nodes(
        op="call_function", target=torch.ops.higher_order.triton_kernel_wrapper_functional
    )
    assert len(launches) == 1 and launches[0].kwargs["tensors_to_clone"] == ["output_ptr"]
    saved = graphs["forward"].graph.find_nodes(op="output")[0].args[0][1:]
    assert len(saved) == 3 and all(node.op == "placeholder" for node in saved)
    assert any("scatter_add" in str(node.target) for node in graphs["backward"].graph.nodes)


def test_gpu_tensors_use_the_kernel_where_the_cuda_library_is_missing(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    import ops_dcnv3.triton  # noqa: F401

    monkeypatch.setattr(backends, "load", lambda name: "not built" if name == "cuda" else None)
    backends._select.cache_clear()
    with FakeTensorMode():
        x, offset, mask = (torch.empty(2, 6, 5, size, device="cuda", requires_grad=True) for size in (32, 36, 18))
        output = dcnv3(x, offset, mask, groups=2)
        assert "triton_forward" in output.grad_fn.name()
        assert output.shape == (2, 6, 5, 32) and output.device.type == "cuda"
    backends._select.cache_clear()


@pytest.mark.parametrize(
    ("module", "function", "value", "reason"),
    [
        ("torch.cuda", "is_available", False, "torch sees no CUDA device"),
        ("shutil", "which", None, "needs a C compiler and found none; install gcc"),
        ("sysconfig", "get_config_var", "/nowhere", "needs Python's headers; install them"),
    ],
)
def test_a_missing_requirement_is_named_with_its_fix(monkeypatch, module, function, value, reason):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(f"{module}.{function}", lambda *_: value)
    assert reason in backends._load_triton()


def test_tensors_in_main_memory_are_refused_in_words():
    _, tensors, _ = CASES["float32"]
    with pytest.raises(backends.BackendError, match="'triton' does not support cpu tensors; choose auto or cpu, torch"):
        dcnv3(*tensors, groups=2, backend="triton")
