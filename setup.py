"""Install ops_dcnv3 and internimage.

If torch can be imported here (`pip install --no-build-isolation .`), the kernels are compiled now; otherwise, or if
that fails, plain Python is installed and the kernels are compiled at their first use. Installing never fails for want
of a compiler, and torch is never a build requirement, so no second torch is downloaded.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Not `import ops_dcnv3.build`: that would import torch, which may be absent.
_spec = importlib.util.spec_from_file_location("ops_dcnv3_build", ROOT / "ops_dcnv3" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


def extensions() -> list[Extension]:
    """Return the libraries to compile here."""
    if importlib.util.find_spec("torch") is None:
        print("ops_dcnv3: torch is not importable here, so no kernels are built now; they are at their first use")
        return []
    files = [str(file.relative_to(ROOT)) for file in build.sources()]
    return [Extension("ops_dcnv3._cpu", files, py_limited_api=True, optional=True)]


class BuildLibraries(build_ext):
    """Compile with build.py's commands, the same that are used at first use."""

    def build_extension(self, ext: Extension) -> None:
        try:
            build.compile_library(Path(self.get_ext_fullpath(ext.name)))
        except build.BuildError as error:
            print(f"ops_dcnv3: {ext.name} was not built ({error}); it is at its first use")
        else:
            print(f"ops_dcnv3: built {ext.name}")

    def copy_extensions_to_source(self) -> None:
        self.extensions = [
            ext for ext in self.extensions if Path(self.build_lib, self.get_ext_filename(ext.name)).exists()
        ]
        super().copy_extensions_to_source()


setup(
    name="internimage",
    version="0.1.0",
    description="InternImage and its operator, deformable convolution v3, on every device",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ops_dcnv3*", "internimage*"]),
    package_data={"ops_dcnv3": ["csrc/*.h", "csrc/*/*"], "internimage": ["*.json", "*.json.gz", "*.tsv"]},
    install_requires=["torch>=2.10", "timm>=1.0.20", "numpy"],
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    zip_safe=False,
)
