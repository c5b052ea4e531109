"""The CUDA kernels as nvcc makes them: every architecture, registers, spills and instruction counts. Nothing is run."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch

from ops_dcnv3 import build, toolchain

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("static_cuda", ROOT / "benchmarks" / "static_cuda.py")
static_cuda = importlib.util.module_from_spec(spec)
first_path = sys.path[0]
spec.loader.exec_module(static_cuda)
sys.path[0] = first_path


def missing() -> str | None:
    try:
        toolchain.find_toolkit()
        static_cuda.disassembler()
    except build.BuildError as error:
        return str(error)
    return None


needs_nvcc = pytest.mark.skipif(missing() is not None, reason=f"CUDA code cannot be compiled here: {missing()}")
measure = cache(static_cuda.measure)


@needs_nvcc
def test_float16_kernels_stay_within_the_static_budgets_on_hopper():
    kernels = measure("9.0")
    assert static_cuda.over_budget(kernels) == []
    forward, backward = (k for k in kernels if k[1:5] == ("float16", 8, 9, False))
    if forward.direction == "backward":
        forward, backward = backward, forward
    assert forward.per_element <= 160 and forward.registers <= 48
    assert backward.per_element <= 300 and backward.count("RED") == 9 * 8
    assert forward.count("LDG.*128") == 36


@needs_nvcc
def test_no_kernel_spills_registers_on_ampere_and_hopper():
    for capability in ("8.0", "9.0"):
        kernels = measure(capability)
        assert (
            len(kernels) == 50
        )  # in each direction 13 vector sizes over the types, and 4 special windows for three of them
        assert [kernel for kernel in kernels if kernel.spills or kernel.shared] == []


@needs_nvcc
@pytest.mark.slow
def test_all_kernels_compile_without_spills_for_every_other_architecture():
    capabilities = [capability for capability in toolchain.ARCHITECTURES if capability not in ("8.0", "9.0")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernels in pool.map(measure, capabilities):
            assert len(kernels) == 50
            assert [kernel for kernel in kernels if kernel.spills or kernel.shared] == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": 56}, "56 registers"),
        ({"spills": 8}, "spills 8 bytes"),
        ({"shared": 128}, "shared memory"),
        ({"instructions": {"FFMA": 1200, "LDG.E.128": 36, "LDG.E": 18}}, None),
        ({"instructions": {"FFMA": 1300, "LDG.E.128": 36, "LDG.E": 18}}, "169.2 instructions per element"),
        ({"instructions": {"LDG.E.128": 30, "LDG.E": 24}}, "30 loads of 128 bits and 24 others"),
        ({"instructions": {"LDG.E.128": 36, "LDG.E": 18, "RED.E.ADD.F32": 4}}, "0 vector atomics and 4 others"),
    ],
)
def test_budgets_notice_what_exceeds_them(change, complaint):
    instructions = {"FFMA": 1000, "LDG.E.128.CONSTANT": 36, "LDG.E.CONSTANT": 9, "LDG.E.U16.CONSTANT": 9}
    good = static_cuda.Kernel("forward", "float16", 8, 9, False, 48, 0, 0, instructions)
    assert static_cuda.over_budget([good]) == []
    complaints = static_cuda.over_budget([good._replace(**change)])
    assert complaints == [] if complaint is None else complaint in " ".join(complaints)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA: nothing to link against")
def test_the_cuda_library_builds_without_a_gpu_and_registers_its_kernels(tmp_path):
    library = tmp_path / "_cuda.so"
    try:
        build.compile_library(library, "_cuda", (), ["8.0"])
    except build.BuildError as error:
        if "same major version" in str(error):
            pytest.skip(str(error))
        raise
    code = (
        "import sys, torch, ops_dcnv3; torch.ops.load_library(sys.argv[1]);"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key;"
        "print(has('ops_dcnv3::forward', 'CUDA'), has('ops_dcnv3::backward', 'CUDA'))"
    )
    finished = subprocess.run([sys.executable, "-c", code, library], cwd=ROOT, capture_output=True, text=True)
    assert finished.stdout.split() == ["True", "True"], finished.stderr


def test_a_missing_toolkit_is_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="has no nvcc; correct or unset CUDA_HOME"):
        toolchain.find_toolkit()


@needs_nvcc
def test_architectures_come_from_the_environment_or_are_all_that_nvcc_knows(monkeypatch):
    toolkit = toolchain.find_toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a 12.0+PTX")
    assert toolchain.architectures(toolkit) == ["8.0", "9.0a", "12.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.BuildError, match="name capabilities as in"):
        toolchain.architectures(toolkit)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert toolchain.architectures(toolkit)[-1].endswith("+PTX")
