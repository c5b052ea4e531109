"""Building the custom operator of ONNX Runtime: the CPU kernels in a library that needs neither torch nor Python.

The library declares what it uses of ONNX Runtime's C interface itself (csrc/onnxruntime/ort_abi.h), so no headers are
wanted, and it serves every ONNX Runtime from 1.17 on; it can be copied to another machine of the same system.

    python -m ops_dcnv3.ort_build     build it if need be, and print where it is
"""

import sys
from pathlib import Path

from . import build

__all__ = ["headers", "library", "sources"]

_FLAGS = ["/DDCNV3_FORWARD_ONLY"] if build.WINDOWS else ["-DDCNV3_FORWARD_ONLY"]


def sources() -> list[Path]:
    """Return the files of the library: the kernels, and in place of torch's binding that of ONNX Runtime."""
    kernels = [file for file in build.sources() if file.name != "binding.cpp"]
    return kernels + build.compiled_here(sorted((build.CSRC / "onnxruntime").glob("*.cpp")))


def headers() -> list[Path]:
    """Return the headers of the library."""
    return build.headers() + sorted((build.CSRC / "onnxruntime").glob("*.h"))


def library() -> Path:
    """Return the library for `SessionOptions.register_custom_ops_library`, building it if need be (see `build.cached`).

    Raises:
        ops_dcnv3.build.BuildError: building is forbidden or failed.
    """
    files = [*sources(), *headers()]
    return build.cached("ops_dcnv3_onnxruntime", "operator for ONNX Runtime", files, str(_FLAGS), _compile)


def _compile(target: Path) -> None:
    build.compile_sources(target, sources(), _FLAGS)


if __name__ == "__main__":
    try:
        print(library())
    except build.BuildError as error:
        sys.exit(f"error: {error}")
