"""Models of one's own with the operator inside: our exporter writes them, and PyTorch's ONNX exporter does too."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from internimage import UserError
from internimage.export import export
from internimage.export.parity import check_parity, require_parity
from internimage.export.spec import Check, Exportable
from ops_dcnv3 import DCNv3, dcnv3


class Net(nn.Module):
    """A network with the layer and the function, and two named outputs."""

    def __init__(self, layer: bool = True, stride: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 24, 3, stride=stride, padding=1)
        self.layer = nn.Identity()
        if layer:
            self.layer = DCNv3(24, group=3)
            nn.init.normal_(self.layer.offset.weight, std=0.2)
        self.offset, self.mask = nn.Linear(24, 3 * 9 * 2), nn.Linear(24, 3 * 9)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.layer(self.stem(images).permute(0, 2, 3, 1))
        x = dcnv3(x, self.offset(x), self.mask(x), groups=3)
        return {"maps": x.permute(0, 3, 1, 2), "pooled": x.mean((1, 2))}


SIZES = [torch.randn(1, 3, 32, 32), torch.randn(3, 3, 32, 32), torch.randn(2, 3, 24, 40)]


def test_one_call_writes_a_checked_standard_file_for_any_size(tmp_path):
    net = Net(layer=False, stride=16)  # the layer with free sizes is tested in whole models
    net.stem.eval()
    # The first one, which is traced, becomes one pixel.
    sizes = [torch.randn(1, 3, 16, 16), torch.randn(2, 3, 40, 64), torch.randn(3, 3, 32, 16)]
    rows = export(net, tmp_path / "net.onnx", sizes, metadata={"task": "mine"})
    assert net.training and not net.stem.training
    assert [row.shape for row in rows] == [tuple(images.shape) for images in sizes]
    assert max(row.relative for row in rows) < 1e-5
    proto = onnx.load(tmp_path / "net.onnx")
    assert [output.name for output in proto.graph.output] == ["maps", "pooled"]
    assert {node.domain for node in proto.graph.node} == {""}


def test_other_formats_take_the_same_call(tmp_path):
    assert export(Net(), tmp_path / "net.xml", SIZES[0], format="openvino", dynamic=False)[0].relative < 1e-5


def test_a_file_that_does_not_run_is_renamed_and_named(tmp_path):
    images = torch.zeros(1, 3, 16, 16)

    def runtime(_: np.ndarray) -> list[np.ndarray]:
        raise RuntimeError("grid batch 64 does not match 16\nat line 7")

    (tmp_path / "net.onnx").write_bytes(b"")
    rows = check_parity(Exportable(nn.Flatten(0), images, ("x",)), Check([images]), runtime)
    with pytest.raises(UserError, match=r"images 1 x 3 x 16 x 16 \(grid .* 16\); it is now .*net.onnx.failed"):
        require_parity(rows, tmp_path / "net.onnx", 1e-4)
    assert (tmp_path / "net.onnx.failed").exists()


def test_what_cannot_be_written_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match="ends in .xml"):
        export(Net(), tmp_path / "net.onnx", SIZES, format="openvino")
    with pytest.raises(UserError, match="1 names.* 2 outputs"):
        export(Net(), tmp_path / "net.onnx", SIZES, output_names=["maps"])
    for images in ([], torch.zeros(3, 32, 32), [SIZES[0].numpy()]):
        with pytest.raises(UserError, match="images must be a tensor"):
            export(Net(), tmp_path / "net.onnx", images)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_pytorchs_own_exporter_needs_nothing_of_ours(dynamo, tmp_path):
    net, path = Net(layer=not dynamo).eval(), tmp_path / "net.onnx"  # with free sizes, the layer takes long
    free = {"dynamic_shapes": ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)} if dynamo else {}
    torch.onnx.export(net, (SIZES[1],), path, dynamo=dynamo, opset_version=20, verbose=False, **free)
    session = onnxruntime.InferenceSession(path)
    for images in SIZES if dynamo else SIZES[1:2]:
        maps, pooled = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(maps, net(images)["maps"].detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pooled, net(images)["pooled"].detach(), rtol=1e-4, atol=1e-5)
