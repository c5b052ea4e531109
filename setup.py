"""Install ops_dcnv3 and internimage.

If torch can be imported here (`pip install --no-build-isolation .`), the kernels are compiled now; otherwise, or if
that fails, plain Python is installed and the kernels are compiled at their first use. Installing never fails for want
of a compiler, and torch is never a build requirement, so no second torch is downloaded.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


# build.py without the package around it, which would import torch.
package = sys.modules["ops_dcnv3"] = ModuleType("ops_dcnv3")
package.__path__ = [str(ROOT / "ops_dcnv3")]
build = importlib.import_module("ops_dcnv3.build")


def extensions() -> list[Extension]:
    """Return the libraries to compile here: the CPU kernels, and the CUDA kernels if there is a GPU and a toolkit.

    For machines with other GPUs, or from one without, `TORCH_CUDA_ARCH_LIST` says that they are wanted: compiling them
    takes minutes.
    """
    if importlib.util.find_spec("torch") is None:
        print("ops_dcnv3: torch is not importable here, so no kernels are built now; they are at their first use")
        return []
    wanted = {"ops_dcnv3._cpu": build.sources()}
    if os.environ.get("OPS_DCNV3_NO_CUDA") == "1":
        print("ops_dcnv3: the CUDA kernels are switched off (OPS_DCNV3_NO_CUDA=1)")
    elif not (os.environ.get("TORCH_CUDA_ARCH_LIST") or importlib.import_module("torch").cuda.is_available()):
        print("ops_dcnv3: no GPU, so no CUDA kernels are built now; to build them, set TORCH_CUDA_ARCH_LIST")
    else:
        try:
            build.find_toolkit()
            wanted["ops_dcnv3._cuda"] = build.sources("_cuda")
        except build.BuildError as error:
            print(f"ops_dcnv3: the CUDA kernels are not built ({error})")
    return [
        Extension(name, [str(file.relative_to(ROOT)) for file in files], py_limited_api=True, optional=True)
        for name, files in wanted.items()
    ]


class BuildLibraries(build_ext):
    """Compile with the commands of build.py."""

    def build_extension(self, ext: Extension) -> None:
        try:
            build.compile_library(Path(self.get_ext_fullpath(ext.name)), ext.name.rpartition(".")[2])
        except build.BuildError as error:
            print(f"ops_dcnv3: {ext.name} was not built ({error}); it is at its first use")
        else:
            print(f"ops_dcnv3: built {ext.name}")

    def copy_extensions_to_source(self) -> None:
        self.extensions = [
            ext for ext in self.extensions if Path(self.build_lib, self.get_ext_filename(ext.name)).exists()
        ]
        super().copy_extensions_to_source()


# Everything else about the package is in pyproject.toml.
setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
