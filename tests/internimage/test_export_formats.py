"""OpenVINO, AOTInductor and ExecuTorch: files of small models compute what PyTorch computes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from internimage import InternImage
from internimage.errors import UserError
from internimage.export.checks import check_parity
from internimage.export.exportable import Exportable, Logits
from internimage.export.formats import find_format
from ops_dcnv3 import DCNv3

SIZE = 64


def exportable(shapes: list[tuple[int, int, int]], dynamic: bool, **changes) -> Exportable:
    """A small model whose sampling points are spread, and noise of (batch, height, width)."""
    torch.manual_seed(0)
    settings = {"channels": 16, "depths": [1, 1], "groups": [2, 4], "num_classes": 7} | changes
    model = InternImage(**settings)
    for module in model.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.bias, std=2.0)
            nn.init.normal_(module.mask.weight, std=0.1)
    samples = [torch.randn(batch, 3, height, width) for batch, height, width in shapes]
    metadata = {"task": "classification", "mean": "[0.5]"}
    return Exportable(Logits(model).eval(), ("logits",), shapes[0][1:], metadata, samples, dynamic=dynamic)


def worst_error(item: Exportable, form: str, path: Path, core: str | None = None, half: bool = False) -> float:
    """Largest relative error of the exported file over the samples."""
    chosen = find_format(form)
    chosen.write(item, path, core=core or chosen.cores[0], half=half)
    return max(row.relative for row in check_parity(item, chosen.load(path, threads=1)))


def test_openvino_agrees_at_three_sizes_and_two_batches(tmp_path: Path) -> None:
    item = exportable([(1, SIZE, SIZE), (3, SIZE, SIZE), (1, 96, 64), (3, 75, 50)], dynamic=True)
    assert worst_error(item, "openvino", tmp_path / "model.xml") < 1e-4


@pytest.mark.parametrize("remove_center", [False, True])
def test_openvino_reads_deform_conv(tmp_path: Path, remove_center: bool) -> None:
    item = exportable([(2, 32, 32)], dynamic=False, depths=[1], groups=[2], remove_center=remove_center)
    assert worst_error(item, "openvino", tmp_path / "model.xml", core="deform_conv") < 1e-4


def test_openvino_keeps_metadata_and_halves_weights(tmp_path: Path) -> None:
    import openvino

    item = exportable([(1, 32, 32)], dynamic=False, channels=32, depths=[1], groups=[2])
    assert worst_error(item, "openvino", tmp_path / "half.xml", half=True) < 1e-2
    worst_error(item, "openvino", tmp_path / "full.xml")
    sizes = [(tmp_path / name).stat().st_size for name in ("half.bin", "full.bin")]
    assert sizes[0] < 0.6 * sizes[1]
    assert openvino.Core().read_model(tmp_path / "full.xml").get_rt_info(["internimage", "mean"]).value == "[0.5]"


def test_a_damaged_openvino_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(UserError, match="OpenVINO cannot read .*model.xml"):
        find_format("openvino").load(tmp_path / "model.xml", threads=1)


def test_aoti_takes_any_batch_of_its_size_and_no_other_size(tmp_path: Path) -> None:
    item = exportable([(1, 32, 32), (2, 32, 32), (3, 32, 32)], dynamic=True, depths=[1], groups=[2])
    assert worst_error(item, "aoti", tmp_path / "model.pt2") < 1e-4
    runtime = find_format("aoti").load(tmp_path / "model.pt2", threads=1)
    assert runtime.model.get_metadata()["mean"] == "[0.5]"
    with pytest.raises(UserError, match="images N x 3 x 32 x 32"):
        runtime(torch.zeros(1, 3, 32, 31).numpy())


def test_aoti_with_our_kernels_loads_them_in_a_new_process(tmp_path: Path) -> None:
    item = exportable([(2, 32, 32)], dynamic=False, depths=[1], groups=[2])
    assert worst_error(item, "aoti", tmp_path / "model.pt2", core="custom") < 1e-4
    code = (
        "import sys, numpy; from pathlib import Path; from internimage.export.aoti import load\n"
        "print(load(Path(sys.argv[1]))(numpy.zeros((2, 3, 32, 32), 'float32'))[0].shape)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt2")]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert finished.stdout.strip() == "(2, 7)", finished.stderr


def test_aoti_says_that_it_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    from internimage.export import aoti

    def no_compiler() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(aoti, "get_cpp_compiler", no_compiler)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        aoti.write(exportable([(1, 32, 32)], dynamic=False), tmp_path / "model.pt2")


def test_a_damaged_aoti_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"no package")
    with pytest.raises(UserError, match="cannot run .*model.pt2"):
        find_format("aoti").load(tmp_path / "model.pt2", threads=1)


def test_executorch_agrees_and_takes_no_other_shape(tmp_path: Path) -> None:
    item = exportable([(2, 32, 32)], dynamic=False, depths=[1], groups=[2])
    assert worst_error(item, "executorch", tmp_path / "model.pte") < 1e-4
    with pytest.raises(UserError, match="takes images .2, 3, 32, 32."):
        find_format("executorch").load(tmp_path / "model.pte", threads=1)(torch.zeros(1, 3, 32, 32).numpy())


def test_executorch_asks_for_static_shapes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --static"):
        find_format("executorch").write(exportable([(1, 32, 32)], True), tmp_path / "m.pte", core="gather", half=False)
