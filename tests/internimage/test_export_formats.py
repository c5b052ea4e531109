"""OpenVINO, AOTInductor and ExecuTorch: files of small models compute what PyTorch computes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import golden
from internimage.errors import UserError
from internimage.export.formats import find_format
from internimage.export.parity import check_parity
from internimage.export.spec import Check, Exportable

ONE_BLOCK = {"depths": [1], "groups": [2], "channels": 16}


def worst_error(item: Exportable, form: str, path: Path, *shapes: tuple[int, ...]) -> float:
    """Largest relative error of a file at shapes; by default at the one that was traced."""
    samples = [golden.image(*shape, seed=i) for i, shape in enumerate(shapes)] or [item.images]
    return max(row.relative for row in check_parity(item, Check(samples), find_format(form).load(path, threads=1)))


def test_openvino_agrees_at_three_sizes_and_keeps_metadata_and_halves_weights(small, small_onnx, tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    from internimage.export.openvino import convert

    item = small(1, 3, 64, 64)
    for name, half in (("full", False), ("half", True)):
        convert(small_onnx, tmp_path / f"{name}.xml", half=half)
    shapes = (1, 3, 64, 64), (3, 3, 64, 64), (1, 3, 96, 64), (3, 3, 75, 50)
    assert worst_error(item, "openvino", tmp_path / "full.xml", *shapes) < 1e-4
    assert worst_error(item, "openvino", tmp_path / "half.xml", *shapes) < 1e-2
    sizes = [(tmp_path / name).stat().st_size for name in ("half.bin", "full.bin")]
    assert sizes[0] < 0.6 * sizes[1]
    assert openvino.Core().read_model(tmp_path / "full.xml").get_rt_info(["internimage", "mean"]).value == "[0.5]"


def test_openvino_reads_deform_conv(small, tmp_path: Path):
    pytest.importorskip("openvino")
    item = small(2, 3, 32, 32, **ONE_BLOCK, remove_center=True)
    find_format("openvino").write(item, tmp_path / "model.xml", core="deform_conv", half=False)
    assert worst_error(item, "openvino", tmp_path / "model.xml") < 1e-4


@pytest.mark.slow
def test_aoti_with_our_kernels_takes_any_batch_of_its_size_and_loads_them_in_a_new_process(small, tmp_path: Path):
    path, item = tmp_path / "model.pt2", small(1, 3, 32, 32, dynamic=True, **ONE_BLOCK)
    find_format("aoti").write(item, path, core="custom", half=False)
    assert worst_error(item, "aoti", path, (1, 3, 32, 32), (3, 3, 32, 32)) < 1e-4
    runtime = find_format("aoti").load(path, threads=1)
    assert torch._inductor.aoti_load_package(str(path)).get_metadata()["mean"] == "[0.5]"
    with pytest.raises(UserError, match="images N x 3 x 32 x 32"):
        runtime(torch.zeros(1, 3, 32, 31).numpy())
    code = (
        "import sys, numpy; from pathlib import Path; from internimage.export.aoti import load\n"
        "print(load(Path(sys.argv[1]))(numpy.zeros((2, 3, 32, 32), 'float32'))[0].shape)"
    )
    command = [sys.executable, "-c", code, str(path)]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert finished.stdout.strip() == "(2, 5)", finished.stderr


@pytest.mark.slow
def test_aoti_without_our_kernels_agrees(small, tmp_path: Path):
    item = small(2, 3, 32, 32, **ONE_BLOCK)
    find_format("aoti").write(item, tmp_path / "model.pt2", core="gather", half=False)
    assert worst_error(item, "aoti", tmp_path / "model.pt2") < 1e-4


def test_aoti_says_that_it_needs_a_compiler(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torch._inductor.exc import InvalidCxxCompiler

    from internimage.export import aoti

    def no_compiler() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(aoti, "get_cpp_compiler", no_compiler)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        aoti.write(small(1, 3, 32, 32), tmp_path / "model.pt2")


@pytest.mark.parametrize(("form", "message"), [("openvino", "OpenVINO cannot read"), ("aoti", "cannot run")])
def test_a_damaged_file_is_one_line(form: str, message: str, tmp_path: Path):
    path = tmp_path / f"model{find_format(form).suffix}"
    path.write_text("<net>")
    with pytest.raises(UserError, match=f"{message} .*{path.name}") as error:
        find_format(form).load(path, threads=1)
    assert "\n" not in str(error.value)


def test_executorch_agrees_and_takes_one_shape_only(small, tmp_path: Path):
    pytest.importorskip("executorch")
    form, path = find_format("executorch"), tmp_path / "model.pte"
    with pytest.raises(UserError, match="add --static"):
        form.write(small(1, 3, 32, 32, dynamic=True), path, core="gather", half=False)
    item = small(2, 3, 32, 32, **ONE_BLOCK)
    form.write(item, path, core="grid_sample", half=False)
    assert worst_error(item, "executorch", path) < 1e-4
    with pytest.raises(UserError, match="takes images .2, 3, 32, 32."):
        form.load(path, threads=1)(torch.zeros(1, 3, 32, 32).numpy())
