"""The attention kernels as nvcc makes them: registers, spills and instruction counts. Nothing is run."""

import re
from functools import cache

import pytest
from test_cuda_static import OTHERS, missing, static_cuda

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"CUDA code cannot be compiled here: {missing()}")
KERNEL = re.compile(r"attention_(forward|backward)_kernelI(6__half|13__nv_bfloat16|f|d)Li(\d+)ELi(\d+)E")


@cache
def measure(capability: str) -> dict[tuple[str, ...], static_cuda.Code]:
    """Compile for one architecture: (direction, type, vector, step or chunks) to the kernel's figures."""
    return {
        found.groups(): code
        for symbol, code in static_cuda.compiled("attention.cu", capability).items()
        if (found := KERNEL.search(symbol))
    }


@pytest.mark.parametrize("capability", ["9.0", *OTHERS])
def test_no_kernel_spills_registers_or_uses_shared_memory(capability):
    kernels = measure(capability)
    # Forward: 13 vector sizes over the types, four points at once for three of them. Backward: no 8 channels of a half
    # type, and compile-time chunks for three types.
    assert len([key for key in kernels if key[0] == "forward"]) == 13 + 3
    assert len([key for key in kernels if key[0] == "backward"]) == 11 + 3
    assert {key: kernel for key, kernel in kernels.items() if kernel.spills or kernel.shared} == {}


def test_half_precision_kernels_stay_within_the_static_budgets_on_hopper():
    # Found with nvcc 13.0: 661 and 585 instructions, 64 and 72 registers. The loop over four points of a level takes
    # 506, over one point in backward 290.
    kernels = measure("9.0")
    for name in ("6__half", "13__nv_bfloat16"):
        forward, backward = kernels["forward", name, "8", "4"], kernels["backward", name, "4", "2"]
        assert forward.count() <= 700 and forward.registers <= 64
        assert backward.count() <= 620 and backward.registers <= 80
        # The corners of four points and their locations are 16-byte loads; then the weights, and height and width.
        assert forward.count(r"LDG.*\.128") == 16 + 1
        assert forward.count(r"LDG") == 17 + 3
        # Each corner receives its two chunks as vector additions.
        assert backward.count(r"RED\w*\..*F32x4") == backward.count(r"RED|ATOM") == 8
