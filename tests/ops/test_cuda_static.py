"""The CUDA kernels as nvcc makes them: every architecture, registers, spills and instruction counts. Nothing is run."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch

from ops_dcnv3 import backends, build

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("static_cuda", ROOT / "benchmarks" / "static_cuda.py")
static_cuda = importlib.util.module_from_spec(spec)
first_path = sys.path[0]
spec.loader.exec_module(static_cuda)
sys.path[0] = first_path
compile_anew = static_cuda.compiled


def compiled(source: str, capability: str) -> dict[str, static_cuda.Code]:
    """What the compiler made of sources; it stays in a temporary folder under a hash of all that it depends on."""
    toolkit = build.find_toolkit()
    digest = hashlib.sha256(repr([source, capability, toolkit.version, toolkit.nvcc.stat().st_mtime]).encode())
    own = [Path(build.__file__), Path(static_cuda.__file__)]
    for file in sorted([*own, *(build.CSRC / "cuda").iterdir(), *build.CSRC.glob("*.h")]):
        digest.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"dcnv3_cuda_static_{os.getuid()}"
    target = folder / f"{Path(source).stem}_{capability}_{digest.hexdigest()[:16]}.json"
    if not target.exists():
        folder.mkdir(exist_ok=True)
        partial = Path(f"{target}.{os.getpid()}")
        partial.write_text(json.dumps(compile_anew(source, capability)))
        os.replace(partial, target)
    return {symbol: static_cuda.Code(*figures) for symbol, figures in json.loads(target.read_text()).items()}


static_cuda.compiled = compiled


def missing() -> str | None:
    try:
        build.find_toolkit()
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
    found = {k.direction: k for k in kernels if (k.dtype, k.points, k.logits) == ("float16", 9, True)}
    assert set(found) == {"forward", "backward", "grad_input"}
    assert found["forward"].per_element <= 172 and found["forward"].count("LDG.*128") == 36
    assert found["backward"].per_element <= 225 and not found["backward"].count("RED")
    # Tiles are summed in shared memory without atomic additions, and leave it in vector reductions.
    assert found["grad_input"].shared == 32 * 1024 and found["grad_input"].count("STS.128") >= 4 * 9
    assert found["grad_input"].count("RED.*F32x4") == found["grad_input"].count("RED|ATOM") > 0


# In forward and backward 13 vector sizes over the types, and 4 special windows for three of them, which also have
# kernels for the gradient of the input.
KERNELS = 2 * (13 + 12) + 12


@needs_nvcc
def test_no_kernel_spills_registers_on_ampere_and_hopper():
    for capability in ("8.0", "9.0"):
        kernels = measure(capability)
        assert len(kernels) == KERNELS
        assert [kernel for kernel in kernels if kernel.spills] == []
        assert {kernel.direction for kernel in kernels if kernel.shared} == {"grad_input"}


# Every architecture takes a minute: here the newest, and with DCNV3_ALL_ARCHITECTURES=1 all.
OTHERS = [capability for capability in build.ARCHITECTURES if capability not in ("8.0", "9.0")]
if os.environ.get("DCNV3_ALL_ARCHITECTURES") != "1":
    OTHERS = OTHERS[-1:]


@needs_nvcc
@pytest.mark.slow
def test_all_kernels_compile_without_spills_for_other_architectures():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernels in pool.map(measure, OTHERS):
            assert len(kernels) == KERNELS
            assert [kernel for kernel in kernels if kernel.spills] == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": 96}, "96 registers"),
        ({"spills": 8}, "spills 8 bytes"),
        ({"shared": 128}, "shared memory"),
        ({"instructions": {"FFMA": 1300, "LDG.E.128": 36, "LDG.E": 18}}, None),
        ({"instructions": {"FFMA": 1400, "LDG.E.128": 36, "LDG.E": 18}}, "181.8 instructions per element"),
        ({"instructions": {"LDG.E.128": 30, "LDG.E": 24}}, "30 loads of 128 bits and 24 others"),
        ({"instructions": {"LDG.E.128": 36, "LDG.E": 18, "RED.E.ADD.F32": 4}}, "0 vector atomics and 4 others"),
    ],
)
def test_budgets_notice_what_exceeds_them(change, complaint):
    instructions = {"FFMA": 1000, "LDG.E.128.CONSTANT": 36, "LDG.E.CONSTANT": 9, "LDG.E.U16.CONSTANT": 9}
    good = static_cuda.Kernel("forward", "float16", 8, 9, True, 80, 0, 0, instructions)
    assert static_cuda.over_budget([good]) == []
    complaints = static_cuda.over_budget([good._replace(**change)])
    assert complaints == [] if complaint is None else complaint in " ".join(complaints)


UNOPTIMISED = "-Xcicc -O0 -Xptxas -O0"
needs_torch_cuda = pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch was built without CUDA: nothing to link against"
)


@needs_nvcc
@needs_torch_cuda
@pytest.mark.slow
def test_the_library_is_built_at_first_use_for_the_gpu_that_is_there(tmp_path):
    """With a stand-in for the query of the device; the rest is what a machine with a GPU does."""
    code = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device=None: (8, 6)
torch.cuda.get_device_name = lambda device=None: "a card"
import ops_dcnv3
from ops_dcnv3 import backends, build
reason = backends.load("cuda")
if reason and "same major version" in reason:
    print("skip", reason)
    raise SystemExit
assert reason is None, reason
assert backends.select("auto", torch.device("cuda", 0)) == "cuda"
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = ("forward", "backward", "ms_deform_attn_forward", "ms_deform_attn_backward")
assert all(has(f"ops_dcnv3::{name}", "CUDA") for name in names)
assert backends._cuda_targets == ["8.6+PTX"], backends._cuda_targets
torch.cuda.get_device_capability = lambda device=None: (8, 0)
print(backends.select("auto", torch.device("cuda", 1)))
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OPS_DCNV3", "TORCH_CUDA"))}
    # Building is tested here, not speed: without optimisation nvcc takes a tenth of the time.
    variables |= {"OPS_DCNV3_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "NVCC_APPEND_FLAGS": UNOPTIMISED}
    # A library beside the sources, of another architecture, must not stand in.
    code = "from ops_dcnv3 import backends; backends._built_library = lambda name: None" + code
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    if finished.stdout.startswith("skip"):
        pytest.skip(finished.stdout)
    assert finished.returncode == 0, finished.stderr
    assert "building the CUDA kernels for 8.6+PTX once" in finished.stderr and "built in" in finished.stderr
    assert len(list(tmp_path.rglob("_cuda.so"))) == 1
    # The second card is older than the code: another backend serves it, and says why.
    assert finished.stdout.split()[-1] in ("triton", "torch")
    assert "its library was built for 8.6+PTX; a card has compute capability 8.0" in finished.stderr


def test_a_missing_toolkit_is_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="has no nvcc; correct or unset CUDA_HOME"):
        build.find_toolkit()


@pytest.mark.skipif(os.name != "posix", reason="uses a shell script as nvcc")
def test_a_toolkit_of_pip_packages_is_found_with_its_runtime(monkeypatch, tmp_path):
    """`nvidia/cu13` of site-packages: nvcc, and the runtime library under its full name alone."""
    root = tmp_path / "cu13"
    for folder in ("bin", "lib"):
        (root / folder).mkdir(parents=True)
    nvcc, runtime = root / "bin" / "nvcc", root / "lib" / "libcudart.so.13"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "release 13.0, V13.0.88" || echo "#$ TOP={root}"\n')
    nvcc.chmod(0o755)
    runtime.touch()
    monkeypatch.setattr(build, "_nvidia_packages", lambda: [root])
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    which = build.shutil.which
    here = str(tmp_path)  # no toolkit of this machine
    monkeypatch.setattr(
        build.shutil,
        "which",
        lambda name, path=None: which(name, path=path) if str(path).startswith(here) else None,
    )
    toolkit = build.find_toolkit()
    assert (toolkit.root, toolkit.nvcc, toolkit.version) == (root, nvcc, (13, 0))
    assert build.find_runtime(toolkit) == runtime
    runtime.unlink()
    with pytest.raises(build.BuildError, match="has no libcudart.so"):
        build.find_runtime(toolkit)


@needs_nvcc
def test_architectures_come_from_the_environment_or_are_all_that_nvcc_knows(monkeypatch):
    toolkit = build.find_toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a 12.0+PTX")
    assert build.architectures(toolkit) == ["8.0", "9.0a", "12.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0 8.0")
    assert build.architectures(toolkit) == ["8.0", "9.0+PTX"]  # PTX of the highest, for GPUs to come
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.BuildError, match="expected capabilities such as"):
        build.architectures(toolkit)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    everything = build.architectures(toolkit)
    assert everything[-1].endswith("+PTX") and "11.0" in " ".join(everything)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (8, 9)][device])
    assert build.architectures(toolkit) == ["8.9", "9.0+PTX"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (99, 0))
    with pytest.raises(build.BuildError, match="does not know compute capability 99.0"):
        build.architectures(toolkit)


@pytest.mark.parametrize(
    ("names", "capability", "served"),
    [
        (["9.0"], (9, 0), True),
        (["8.0"], (8, 6), True),  # machine code runs on later GPUs of its generation
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0+PTX"], (9, 0), True),
        (["9.0+PTX"], (8, 0), False),
        (["9.0a+PTX"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),  # features of one GPU
        (["10.0f"], (10, 3), True),
        ([], (9, 0), False),
    ],
)
def test_what_a_library_was_built_for_says_on_which_gpus_it_runs(names, capability, served):
    assert backends.serves(names, capability) is served
