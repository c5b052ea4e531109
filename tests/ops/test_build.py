"""Building and choosing backends: at first use, ahead of time, without a compiler, by several processes at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ops_dcnv3
from ops_dcnv3 import backends, build

ROOT = Path(ops_dcnv3.__file__).resolve().parents[1]
COMPILES = backends.status()["cpu"] is None
# Stands in for a slow compiler: the real one takes half a minute for each library.
FAKE_COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo fake && exit
echo run >> {log}
for argument; do [ "$previous" = -o ] && echo object > "$argument"; previous=$argument; done
sleep 0.2
"""

posix = pytest.mark.skipif(os.name != "posix", reason="uses a shell script as the compiler")


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that writes its runs to the file returned, and an empty cache."""
    log = tmp_path / "log"
    script = tmp_path / "c++"
    script.write_text(FAKE_COMPILER.format(log=log))
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("OPS_DCNV3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPS_DCNV3_NO_BUILD", raising=False)
    return log


def python(code: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter with the packages of `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_every_source_is_compiled_and_every_capability_has_its_flags():
    names = {file.name for file in build.sources()}
    assert {"binding.cpp", "capability.cpp", "kernel_portable.cpp"} <= names
    assert ("kernel_avx512.cpp" in names) == build.X86
    flags = " ".join([*build._FLAGS, *sum(build._FILE_FLAGS.values(), [])])
    assert "native" not in flags


@posix
def test_one_of_several_processes_builds_and_the_others_wait(fake_compiler):
    code = "from ops_dcnv3 import build; print(build.cached_library())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [process.communicate() for process in processes]
    assert len({output for output, _ in results}) == 1 and results[0][0]
    assert sum(b"building the CPU kernels" in error for _, error in results) == 1
    assert len(fake_compiler.read_text().split()) == len(build.sources()) + 1  # one run each and one to link


@posix
def test_changed_sources_and_compilers_get_a_library_of_their_own(fake_compiler, tmp_path, monkeypatch):
    first = build.cached_library()
    assert build.cached_library() == first
    header = tmp_path / "extra.h"
    header.write_text("// changed")
    monkeypatch.setattr(build, "headers", lambda name: [header])
    assert build.cached_library() != first


@posix
def test_a_cache_that_cannot_be_written_is_named(fake_compiler, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("OPS_DCNV3_CACHE", str(blocked))
    with pytest.raises(build.BuildError, match="set OPS_DCNV3_CACHE to a folder that can be written"):
        build.cached_library()


@posix
def test_a_failing_compiler_is_quoted_in_one_line(fake_compiler, tmp_path):
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'x.cpp:1: error: something odd'\nexit 1\n")
    with pytest.raises(build.BuildError, match="something odd.*CXX") as error:
        build.cached_library()
    assert "\n" not in str(error.value)


def test_a_missing_compiler_is_explained(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="CXX=no-such-compiler is not there"):
        build.find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler was found; "):
        build.find_compiler()


def test_the_import_is_light_and_without_a_build_the_torch_backend_serves_and_says_so_once():
    code = """
import sys, torch
from ops_dcnv3 import BackendError, backends, dcnv3
print(*{"torch._dynamo", "triton", "sympy"} & set(sys.modules), sep=", ")
backends._built_library = lambda name: None
arguments = torch.randn(1, 4, 4, 6), torch.randn(1, 4, 4, 36), torch.randn(1, 4, 4, 18)
for _ in range(3):
    dcnv3(*arguments, groups=2)
print(backends.select("auto", torch.device("cpu")))
try:
    dcnv3(*arguments, groups=2, backend="cpu")
except BackendError as error:
    print(error)
"""
    result = python(code, OPS_DCNV3_NO_BUILD="1")
    imported, chosen, error = result.stdout.splitlines()
    assert imported == "" and chosen == "torch"
    assert error.startswith("backend 'cpu' cannot run here: building is switched off; unset OPS_DCNV3_NO_BUILD")
    assert result.stderr.count("using the slower backend 'torch'") == 1 and len(result.stderr.splitlines()) == 1


def test_the_report_lists_every_backend_with_a_reason():
    report = subprocess.run([sys.executable, "-m", "ops_dcnv3"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in backends.NAMES:
        assert re.search(rf"^  {name} +(yes|no: \w+)", report, re.MULTILINE)
    assert "auto uses " in report


@pytest.mark.skipif(not COMPILES, reason="no compiler on this machine")
def test_a_library_of_an_older_version_is_named(tmp_path):
    (tmp_path / "old.cpp").write_text('extern "C" int nothing_of_today() { return 0; }')
    library = tmp_path / "_cpu.so"
    subprocess.run([build.find_compiler(), "-shared", "-fPIC", str(tmp_path / "old.cpp"), "-o", library], check=True)
    code = f"""
from pathlib import Path
from ops_dcnv3 import backends
backends._built_library = lambda name: Path({str(library)!r})
print(backends.load("cpu"))
"""
    assert f"{library} is older than this package; delete it, or rebuild it" in python(code).stdout


def test_the_cuda_library_can_be_switched_off_at_run_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("OPS_DCNV3_NO_CUDA", "1")
    assert backends._load_cuda() == "it is switched off; unset OPS_DCNV3_NO_CUDA"


def test_backends_that_do_not_serve_a_device_are_refused():
    with pytest.raises(ops_dcnv3.BackendError, match="does not support cpu tensors; choose auto or cpu, torch"):
        backends.select("cuda", torch.device("cpu"))
    with pytest.raises(ops_dcnv3.BackendError, match="unknown backend 'tpu'; choose auto, cuda, triton, cpu, torch"):
        backends.select("tpu", torch.device("cpu"))
