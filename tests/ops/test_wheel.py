"""The wheel: built here without network or isolation, unpacked, and loaded by other interpreters."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ops_dcnv3 import build

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ops_dcnv3", "internimage", "classification", "detection", "segmentation")
# Outputs and gradients of the library against the gather core, wherever `ops_dcnv3` is found on PYTHONPATH.
CHECK = """
import sys, torch, ops_dcnv3
from ops_dcnv3 import backends
from ops_dcnv3.reference import Geometry, gather_core
assert ops_dcnv3.__file__.startswith(sys.argv[1]), ops_dcnv3.__file__
assert backends.select("auto", torch.device("cpu")) == "cpu", backends.status()["cpu"]
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)):
    for scalars in ((3, 3, 1, 1, 1, 1, 1, 1, 4, 1.0, False, True), (3, 3, 2, 1, 1, 0, 1, 2, 3, 0.7, True, False)):
        g = Geometry(*scalars)
        torch.manual_seed(0)
        out = g.output_size(9, 8)
        sizes = (2, 9, 8, g.groups * 8), (2, *out, g.groups * g.points * 2), (2, *out, g.groups * g.points)
        tensors = [torch.randn(size).to(dtype).requires_grad_() for size in sizes]
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        output, expected = torch.ops.ops_dcnv3.forward(*tensors, *g), gather_core(*exact, g)
        grad = torch.randn(expected.shape).to(dtype)
        actual = output, *torch.autograd.grad(output, tensors, grad)
        reference = expected, *torch.autograd.grad(expected, exact, grad.double())
        for a, b in zip(actual, reference):
            error = (a.double() - b).abs().max() / b.abs().max()
            assert error < tolerance, (dtype, scalars, error.item())
print("parity under torch", torch.__version__)
"""


def build_wheel(folder, **environment):
    """Build a wheel from a copy of the sources; return its path and what was printed."""
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "predict_onnx.py"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.dylib")
        shutil.copytree(ROOT / package, source / package, ignore=unwanted)
    # The CPU library is enough here: nvcc would take minutes.
    variables = {**os.environ, "CUDA_HOME": "/nowhere", **environment}
    command = [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(folder / "dist")]
    result = subprocess.run(command, cwd=source, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel, result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("wheel")
    if sys.platform == "win32":
        return build_wheel(folder)[0]
    # Packaging is tested here, not speed: the last -O wins, and -O0 compiles in a tenth of the time.
    hasty = folder / "c++"
    hasty.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" -O0\n')
    hasty.chmod(0o755)
    return build_wheel(folder, CXX=str(hasty))[0]


@pytest.fixture(scope="module")
def unpacked(wheel):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "unpacked")
    return wheel.parent / "unpacked"


def load(python, unpacked):
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OPS_DCNV3_NO_BUILD": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-c", CHECK, str(unpacked)]
    result = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_one_wheel_serves_every_python_from_3_10_on_this_platform(wheel):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-cp310-abi3-{platform}.whl")


def test_the_wheel_holds_the_library_its_sources_and_the_data_files(unpacked):
    libraries = [file.name for file in (unpacked / "ops_dcnv3").iterdir() if file.name.startswith("_cpu.")]
    assert libraries in (["_cpu.abi3.so"], ["_cpu.pyd"])
    source = unpacked.parents[1] / "source"
    for pattern in ("ops_dcnv3/csrc/**/*.*", "internimage/**/*.tsv", "*/**/*.py", "classification/configs/**/*.yaml"):
        for file in source.glob(pattern):
            if file.relative_to(source).parts[0] != "build" and "demo" not in file.relative_to(source).parts[:2]:
                assert (unpacked / file.relative_to(source)).exists(), file
    assert {file.name for file in unpacked.iterdir() if file.suffix != ".dist-info"} == {*PACKAGES, "predict_onnx.py"}
    assert not list(unpacked.rglob("*emulation*"))


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="reads symbols with nm, on Linux")
def test_the_library_needs_only_torchs_stable_interface(unpacked):
    library = unpacked / "ops_dcnv3" / "_cpu.abi3.so"
    symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in symbols.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    # C++ symbols of torch (namespaces at, c10, torch) and Python's own change between versions.
    assert not [name for name in names if "2at" in name or "3c10" in name or "5torch" in name or name.startswith("Py")]


def test_the_unpacked_wheel_computes_what_the_gather_core_does(unpacked):
    assert "parity" in load(sys.executable, unpacked)


@pytest.mark.skipif("OPS_DCNV3_OTHER_PYTHON" not in os.environ, reason="OPS_DCNV3_OTHER_PYTHON names no interpreter")
def test_the_same_wheel_loads_under_another_version_of_torch(unpacked):
    other = os.environ["OPS_DCNV3_OTHER_PYTHON"]
    version = "import torch; print(torch.__version__)"
    here, there = (
        subprocess.run([python, "-c", version], capture_output=True, text=True, check=True).stdout
        for python in (sys.executable, other)
    )
    assert here.split(".")[:2] != there.split(".")[:2], f"{other} has torch {there.strip()} too"
    assert there.strip() in load(other, unpacked)


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("c++"), reason="uses the options of GCC and Clang")
@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.name)
def test_the_sources_are_standard_cpp_apart_from_guarded_lines(source):
    include = build._torch_folders()[0]
    own = build._FILE_FLAGS.get(build._capability(source), [])
    flags = [*own, f"-DTORCH_TARGET_VERSION={build.TORCH_TARGET}", "-isystem", include]
    command = ["c++", "-std=c++17", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags]
    subprocess.run([*command, source], check=True)


def test_the_messages_that_the_install_page_explains_are_the_real_ones():
    files = [ROOT / "setup.py", *(ROOT / "ops_dcnv3").glob("*.py")]
    # A message may be written as several adjacent strings.
    code = re.sub(r'"\s*f?"', "", "".join(file.read_text() for file in files))
    table = (ROOT / "docs" / "install.md").read_text().split("## When something goes wrong")[1]
    messages = re.findall(r"^\| `([^`]+(?:`[^`|]*`)*[^`|]*)` \|", table, re.MULTILINE)
    assert len(messages) >= 10
    for message in messages:
        for fragment in re.split(r"\.\.\.|'\w+'|; ", message):
            assert fragment.strip(" ()") in code, message


def test_without_torch_a_pure_wheel_is_made_that_holds_the_sources(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    wheel, printed = build_wheel(tmp_path, PYTHONPATH=str(tmp_path))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "torch is not importable here, so no kernels are built now" in printed
    assert "ops_dcnv3/csrc/cpu/binding.cpp" in zipfile.ZipFile(wheel).namelist()


def test_without_a_compiler_a_wheel_is_made_and_the_reason_said(tmp_path):
    wheel, printed = build_wheel(tmp_path, CXX="/nowhere/c++")
    assert "ops_dcnv3._cpu was not built (the C++ compiler CXX=/nowhere/c++ is not there; correct or unset" in printed
    files = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in files if name.startswith("ops_dcnv3/_cpu")]
    assert {"ops_dcnv3/csrc/cpu/kernel.h", "ops_dcnv3/csrc/cpu/binding.cpp"} <= files  # to build at first use
