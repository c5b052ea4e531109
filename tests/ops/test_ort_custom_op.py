"""The operator for ONNX Runtime: parity with PyTorch as one node and in whole models, threads, and bad input."""

import ctypes
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from dcnv3_cases import Case, reference

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from internimage import InternImage  # noqa: E402
from internimage.errors import UserError  # noqa: E402
from internimage.export import custom_op  # noqa: E402
from internimage.export import onnx as onnx_format  # noqa: E402
from internimage.export.exportable import Exportable, elementwise_error  # noqa: E402
from ops_dcnv3 import build, ort_build  # noqa: E402

try:
    ort_build.library()
except build.BuildError as reason:
    pytest.skip(f"the operator cannot be built here: {reason}", allow_module_level=True)

CASES = {
    "small": Case(),
    "strided and dilated": Case(2, 9, 11, 3, 5, (3, 5), (2, 1), (2, 3), (2, 1), 1.5),
    "without centre": Case(batch=3, groups=4, channels=16, remove_center=True, offset_scale=0.7),
    "many rows": Case(1, 40, 40, 4, 16, logits=True),
    "empty batch": Case(batch=0),
}


def one_node(type: str, inputs: list[str], kind: int = onnx.TensorProto.FLOAT, **attributes) -> bytes:
    """An ONNX model of one node with free shapes."""
    node = onnx.helper.make_node(type, inputs, ["output"], domain=custom_op.DOMAIN, **attributes)
    values = {name: onnx.helper.make_tensor_value_info(name, kind, None) for name in [*inputs, "output"]}
    graph = onnx.helper.make_graph([node], "node", [values[name] for name in inputs], [values["output"]])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(custom_op.DOMAIN, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def node_model(case: Case, dtype: torch.dtype = torch.float32, **changes) -> bytes:
    """An ONNX model of one DCNv3 node."""
    names = ("kernel", "stride", "padding", "dilation")
    attributes = {f"{name}_{axis}": getattr(case, name)[i] for name in names for i, axis in enumerate("hw")}
    attributes |= {"groups": case.groups, "offset_scale": float(case.offset_scale)}
    attributes |= {"remove_center": int(case.remove_center), "mask_is_logits": int(case.logits), **changes}
    kind = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}[dtype]
    return one_node("DCNv3", ["input", "offset", "mask"], kind, **attributes)


def session(model: bytes, threads: int = 1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    custom_op.register(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(case: Case, tensors, dtype: torch.dtype = torch.float32, threads: int = 1) -> torch.Tensor:
    feeds = {name: tensor.numpy() for name, tensor in zip(("input", "offset", "mask"), tensors)}
    return torch.from_numpy(session(node_model(case, dtype), threads).run(None, feeds)[0])


@pytest.mark.parametrize("name", CASES)
def test_the_node_computes_what_the_definition_says(name):
    case = CASES[name]
    tensors = case.tensors(torch.float32)[:3]
    torch.testing.assert_close(run(case, tensors), reference(case, *tensors).float(), atol=1e-5, rtol=1e-5)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def capability(request):
    """Each instruction set of this machine in turn."""
    loaded = ctypes.CDLL(str(custom_op.library()))
    loaded.ops_dcnv3_cpu_capability.restype = ctypes.c_char_p
    before = loaded.ops_dcnv3_cpu_capability()
    if not loaded.ops_dcnv3_set_cpu_capability(request.param.encode()):
        pytest.skip(f"this machine or this build has no {request.param}")
    yield request.param
    loaded.ops_dcnv3_set_cpu_capability(before)


def test_an_unusable_instruction_set_is_an_error_when_the_library_is_registered():
    code = "import sys, onnxruntime; onnxruntime.SessionOptions().register_custom_ops_library(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", code, str(custom_op.library())],
        env={**os.environ, "OPS_DCNV3_CPU_CAPABILITY": "avx9000"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "OPS_DCNV3_CPU_CAPABILITY is 'avx9000'; this machine can use portable" in result.stderr


@pytest.mark.parametrize("channels", [8, 40, 67, 256])
@pytest.mark.parametrize("kernel, stride, padding", [((3, 3), (1, 1), (1, 1)), ((5, 3), (2, 1), (2, 0))])
def test_features_are_convolved_normalised_and_activated(capability, channels, kernel, stride, padding):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 9, channels), torch.randn(*kernel, channels)
    bias, scale, shift = torch.randn(3, channels).unbind()
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(2, 0, 1)[:, None], bias, stride, padding, 1, channels)
    expected = F.gelu(F.layer_norm(expected.permute(0, 2, 3, 1), (channels,), scale, shift, 1e-6))
    pairs = {
        f"{name}_{axis}": v[i] for name, v in (("stride", stride), ("padding", padding)) for i, axis in enumerate("hw")
    }
    feeds = dict(input=x, weight=weight, bias=bias, scale=scale, shift=shift)
    model = one_node("DCNv3Features", list(feeds), epsilon=1e-6, **pairs)
    result = session(model, threads=2).run(None, {name: tensor.numpy() for name, tensor in feeds.items()})[0]
    torch.testing.assert_close(torch.from_numpy(result), expected, atol=1e-5, rtol=1e-5)
    feeds["scale"] = torch.ones(channels + 1)
    with pytest.raises(Exception, match=rf"scale must have shape \({channels}\) .* it has \({channels + 1}\)"):
        session(model).run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.mark.parametrize("shape", [(3, 5, 64), (130, 7), (1, 2000), (0, 16)])
def test_norm_and_gelu_are_those_of_pytorch(capability, shape):
    torch.manual_seed(0)
    x, (scale, shift) = 3 * torch.randn(shape) + 2, torch.randn(2, shape[-1])
    feeds = {name: tensor.numpy() for name, tensor in dict(input=x, scale=scale, shift=shift).items()}
    model = one_node("LayerNormalization", list(feeds), epsilon=1e-6)
    normal = torch.from_numpy(session(model, threads=2).run(None, feeds)[0])
    torch.testing.assert_close(normal, F.layer_norm(x, shape[-1:], scale, shift, 1e-6), atol=1e-5, rtol=1e-5)
    activated = session(one_node("Gelu", ["input"]), threads=2).run(None, {"input": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(activated), F.gelu(x), atol=2e-6, rtol=1e-6)


def test_gelu_is_exact_to_single_precision_everywhere(capability):
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-30])])
    result = torch.from_numpy(session(one_node("Gelu", ["input"])).run(None, {"input": x.numpy()})[0])
    torch.testing.assert_close(result.double(), F.gelu(x.double()), atol=1.5e-6, rtol=3e-7)
    odd = torch.tensor([float("nan"), float("inf")] * 20)
    result = torch.from_numpy(session(one_node("Gelu", ["input"])).run(None, {"input": odd.numpy()})[0])
    torch.testing.assert_close(result, odd, equal_nan=True)


class Logits(torch.nn.Module):
    """A classifier whose output is a tuple."""

    def __init__(self, **settings) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = InternImage(depths=[1, 1, 1, 1], num_classes=7, **settings).eval()
        for name, parameter in self.model.named_parameters():
            if ".offset." in name or ".mask." in name or ".center_feature_scale" in name:
                torch.nn.init.normal_(parameter, std=0.1)  # zero in a new model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(images),)


MODELS = {
    "huge": dict(
        channels=16, groups=[1, 2, 4, 8], layer_scale=0.5, res_post_norm=True, dw_kernel_size=5,
        center_feature_scale=True, remove_center=True, offset_scale=1.5,
    ),
    "batch norm": dict(channels=16, groups=[2, 4, 8, 16], norm_layer="BN", post_norm=True, layer_scale=1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_agree_with_pytorch_at_several_sizes_and_batches(name, tmp_path):
    samples = [torch.randn(n, 3, h, w) for n, h, w in ((1, 64, 64), (3, 64, 96), (1, 90, 70))]
    exportable = Exportable(Logits(**MODELS[name]), ("logits",), (64, 64), {}, samples)
    path = tmp_path / "model.onnx"
    onnx_format.write(exportable, path, core="custom")
    types = [node.op_type for node in onnx.load(path).graph.node if node.domain == custom_op.DOMAIN]
    assert types.count("DCNv3") == 4 and types.count("DCNv3Features") == (0 if name == "batch norm" else 4)
    runtime = onnx_format.load(path)
    for sample in samples:
        actual = tuple(torch.from_numpy(output) for output in runtime(sample.numpy()))
        assert elementwise_error(actual, exportable.reference(sample))[0] < 1e-4


class Unusual(torch.nn.Module):
    """Norms and activations that the operators are not for, in the midst of which is one that they are for."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.Sequential(
            torch.nn.LayerNorm((6, 8)),
            torch.nn.LayerNorm(8, elementwise_affine=False),
            torch.nn.GELU("tanh"),
            torch.nn.LayerNorm(8, bias=False),
            torch.nn.LayerNorm(8),
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.norms(images),)


def test_other_norms_and_activations_stay_standard(tmp_path):
    exportable = Exportable(Unusual().eval(), ("y",), (6, 8), {}, [torch.randn(2, 3, 6, 8)], dynamic=False)
    path = tmp_path / "model.onnx"
    onnx_format.write(exportable, path, core="custom")
    assert [node.op_type for node in onnx.load(path).graph.node if node.domain] == ["LayerNormalization"]
    actual = onnx_format.load(path)(exportable.samples[0].numpy())[0]
    torch.testing.assert_close(torch.from_numpy(actual), exportable.reference(exportable.samples[0])[0])


def test_half_precision_is_summed_in_single():
    case = CASES["many rows"]
    tensors = case.tensors(torch.float16)[:3]
    result = run(case, tensors, torch.float16)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.double(), reference(case, *tensors), atol=2e-3, rtol=2e-3)


def test_threads_do_not_change_the_result():
    case = dataclasses.replace(CASES["many rows"], batch=3)
    tensors = case.tensors(torch.float32)[:3]
    torch.testing.assert_close(run(case, tensors, threads=4), run(case, tensors), atol=0, rtol=0)


def test_sessions_come_and_go_in_any_order():
    case = CASES["small"]
    tensors = case.tensors(torch.float32)[:3]
    first, second = session(node_model(case)), session(node_model(case))
    del first
    feeds = {name: tensor.numpy() for name, tensor in zip(("input", "offset", "mask"), tensors)}
    torch.testing.assert_close(torch.from_numpy(second.run(None, feeds)[0]), run(case, tensors), atol=0, rtol=0)


@pytest.mark.parametrize(
    "which, shape, message",
    [
        (0, (1, 5, 6, 7), r"groups must divide the channels; there are 2 groups and input is \(1, 5, 6, 7\)"),
        (0, (5, 6, 16), r"input must have 4 dimensions, channels last; it has shape \(5, 6, 16\)"),
        (1, (1, 5, 6, 35), r"offset must have shape \(1, 5, 6, 36\) for input \(1, 5, 6, 16\); it has \(1, 5, 6, 35\)"),
        (1, (2, 5, 6, 36), r"offset must have shape \(1, 5, 6, 36\) .* it has \(2, 5, 6, 36\)"),
        (2, (1, 6, 6, 18), r"mask must have shape \(1, 5, 6, 18\) for input \(1, 5, 6, 16\); it has \(1, 6, 6, 18\)"),
    ],
)
def test_a_wrong_shape_is_named(which, shape, message):
    case = CASES["small"]
    tensors = list(case.tensors(torch.float32)[:3])
    tensors[which] = torch.zeros(shape)
    with pytest.raises(Exception, match=message):
        run(case, tensors)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride_h": 0}, "attribute stride_h must be at least 1; it is 0"),
        ({"kernel_h": 4, "remove_center": 1}, "remove_center needs odd kernel sizes"),
        ({"kernel_h": 1, "kernel_w": 1, "remove_center": 1}, "leaves no point"),
    ],
)
def test_wrong_attributes_are_named_when_the_model_is_loaded(changes, message):
    with pytest.raises(Exception, match=message):
        session(node_model(CASES["small"], **changes))


def test_a_missing_compiler_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match="the custom operator cannot be built: .*CXX; or export with --core grid_sample"
    ):
        custom_op.library()
