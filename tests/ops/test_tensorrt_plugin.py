"""The TensorRT plugin, compiled against declarations written for these tests and executed on the CPU under emulation.

Nothing here runs TensorRT, except for the last test, where TensorRT for RTX is installed.
"""

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_emulation_build import COMPILER, HERE, build
from dcnv3_cases import Case, reference

from internimage.errors import UserError
from internimage.export.sampling import SAMPLERS, Predictors
from internimage.export.tensorrt_engine import library
from ops_dcnv3.build import BuildError, find_toolkit
from ops_dcnv3.reference import Geometry

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the plugin with")

PLUGIN = HERE.parents[1] / "tensorrt" / "plugin"
HEADERS = HERE / "fake_tensorrt"
INT32, INT64, FLOAT32, FLOAT64 = 5, 10, 1, 2  # PluginFieldType
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 7}  # DataType
LINEAR, CHW32 = 0, 5  # TensorFormat

CASES = {
    "stage of T": Case(batch=2, height=7, width=9, channels=16, logits=True),
    "without centre": Case(channels=16, remove_center=True, offset_scale=2.0),
    "unequal window": Case(
        groups=3, channels=6, kernel=(1, 4), stride=(2, 3), padding=(0, 2), dilation=(1, 2), offset_scale=0.5
    ),
}


def compiled(source: str, *flags: str) -> Path:
    """Compile with the plugin's sources, whose content is part of the command and so of the result's name."""
    content = b"".join(file.read_bytes() for file in sorted([*PLUGIN.glob("*.*"), *HEADERS.iterdir()]))
    flags = (f"-DSOURCES_{hashlib.sha256(content).hexdigest()[:16]}", f"-I{HEADERS}", f"-I{PLUGIN}", *flags)
    return build(source, "-O1", *flags, str(HERE / "emulated_dcnv3.cpp"), shared=True)


def attributes(case: Case) -> dict[str, float]:
    pairs = {"kernel": case.kernel, "stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    fields = {f"{name}_{axis}": pair[i] for name, pair in pairs.items() for i, axis in enumerate("hw")}
    fields |= {"groups": case.groups, "remove_center": case.remove_center, "mask_is_logits": case.logits}
    return {**fields, "offset_scale": case.offset_scale}


class Plugin:
    """One plugin object, as TensorRT would hold it."""

    def __init__(self, library: ctypes.CDLL, fields: dict[str, float], types: dict[str, int] | None = None) -> None:
        types = {name: FLOAT32 if name == "offset_scale" else INT32 for name in fields} | (types or {})
        names = (ctypes.c_char_p * len(fields))(*(name.encode() for name in fields))
        values = (ctypes.c_double * len(fields))(*map(float, fields.values()))
        kinds = (ctypes.c_int * len(fields))(*(types[name] for name in fields))
        self.library, self.pointer = library, library.create(len(fields), names, values, kinds)

    def __getattr__(self, name):
        return lambda *args: getattr(self.library, name)(ctypes.c_void_p(self.pointer), *args)

    def replace(self, how: str) -> None:
        self.pointer = getattr(self.library, how)(ctypes.c_void_p(self.pointer))

    def forward(self, input, offset, mask, output_shape):
        output = torch.full(output_shape, torch.nan, dtype=input.dtype)
        sizes = (ctypes.c_int64 * 12)(*input.shape, *offset.shape, *mask.shape)
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (input, offset, mask, output)]
        code = self.run(DTYPES[input.dtype], sizes, *pointers)
        return output if code == 0 else self.library.take_messages().decode()


@pytest.fixture(scope="module")
def plugins():
    library = ctypes.CDLL(str(compiled("tensorrt_plugin_driver.cpp")))
    for name in ("create", "saved_and_loaded", "cloned"):
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("take_messages", "creator_identity", "field_names"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def test_the_plugin_goes_by_the_name_of_the_onnx_node(plugins):
    assert plugins.creator_identity() == b"ops_dcnv3 DCNv3 1"


def test_the_plugin_reads_every_argument_of_the_operator(plugins):
    schema = torch.ops.ops_dcnv3.forward.default._schema
    assert sorted(plugins.field_names().decode().split()) == sorted(x.name for x in schema.arguments[3:])


def test_the_exported_node_has_the_attributes_that_the_plugin_reads(plugins):
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 1.5, False, True)
    weights = Predictors(torch.zeros(36, 8), torch.zeros(36), torch.zeros(18, 8), torch.zeros(18))
    sampler = SAMPLERS["custom"](geometry, weights).eval()
    inputs = torch.zeros(1, 5, 5, 8), torch.zeros(1, 5, 5, 8)
    program = torch.onnx.export(sampler, inputs, dynamo=True, opset_version=19, verbose=False)
    (node,) = [node for node in program.model_proto.graph.node if node.op_type == "DCNv3"]
    assert node.domain == "ops_dcnv3"
    values = {attribute.name: attribute.f if attribute.type == 1 else attribute.i for attribute in node.attribute}
    assert sorted(values) == sorted(plugins.field_names().decode().split())
    assert (values["groups"], values["offset_scale"], values["mask_is_logits"]) == (2, 1.5, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_saved_and_loaded_plugin_computes_the_operator(plugins, case, dtype):
    plugin = Plugin(plugins, attributes(case))
    plugin.replace("cloned")
    plugin.replace("saved_and_loaded")
    *tensors, _ = case.tensors(dtype)
    output = plugin.forward(*tensors, case.output_shape)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    expected = reference(case, *tensors)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    plugin.destroy()


def test_attributes_of_any_width_are_read_and_the_others_have_the_operators_defaults(plugins):
    case = Case(groups=2, channels=8, offset_scale=1.5)
    fields = {"groups": 2, "offset_scale": 1.5, "plugin_version": 3}
    plugin = Plugin(plugins, fields, {"groups": INT64, "offset_scale": FLOAT64})
    *tensors, _ = case.tensors(torch.float32)
    output = plugin.forward(*tensors, case.output_shape)
    torch.testing.assert_close(output.double(), reference(case, *tensors), rtol=1e-5, atol=1e-5)
    plugin.destroy()


def test_the_output_has_the_offsets_extent_and_the_inputs_channels_and_type(plugins):
    plugin, result = Plugin(plugins, {}), (ctypes.c_int * 8)()
    assert plugin.output_shape(3, 4, result) == 0
    assert list(result[:4]) == [10, 11, 12, 3]
    assert [plugin.output_type(dtype) for dtype in DTYPES.values()] == list(DTYPES.values())
    assert plugin.output_shape(2, 4, result) != 0
    assert b"expected the inputs" in plugins.take_messages()
    assert plugin.output_shape(3, 3, result) != 0
    assert b"4 dimensions, channels last" in plugins.take_messages()
    plugin.destroy()


def test_dense_tensors_of_one_floating_type_are_taken_and_nothing_else(plugins):
    plugin = Plugin(plugins, {})

    def taken(types, formats=(LINEAR,) * 4):
        arrays = (ctypes.c_int * 4)(*types), (ctypes.c_int * 4)(*formats)
        return [bool(plugin.supports(position, *arrays)) for position in range(4)]

    for dtype in DTYPES.values():
        assert taken([dtype] * 4) == [True] * 4
    assert taken([0, 0, 1, 0]) == [True, True, False, True]
    assert taken([2] * 4) == [False] * 4  # int8
    assert taken([1] * 4, [LINEAR, LINEAR, LINEAR, CHW32]) == [True, True, True, False]
    plugin.destroy()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kernel_h": 0}, "must be at least 1"),
        ({"groups": 0}, "must be at least 1"),
        ({"padding_w": -1}, "must not be negative"),
        ({"remove_center": 1, "kernel_w": 2}, "odd kernel"),
    ],
)
def test_impossible_attributes_give_no_plugin_but_a_message(plugins, fields, complaint):
    assert Plugin(plugins, fields).pointer is None
    assert complaint in plugins.take_messages().decode()


@pytest.mark.parametrize(
    ("which", "dimension", "complaint"),
    [
        (0, 3, "groups must divide the channels"),
        (1, 1, "offset does not have the output's"),
        (2, 2, "mask does not have the output's"),
        (1, 3, "groups * points * 2 channels"),
        (2, 3, "groups * points channels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_the_kernel_sees_them(plugins, which, dimension, complaint):
    case = Case()
    tensors = [list(x.shape) for x in case.tensors(torch.float32)[:3]]
    tensors[which][dimension] += 1
    plugin = Plugin(plugins, attributes(case))
    sizes = (ctypes.c_int64 * 12)(*sum(tensors, []))
    assert plugin.configure(sizes) != 0
    assert complaint in plugins.take_messages().decode()
    empty = ctypes.c_void_p()
    assert plugin.run(0, sizes, empty, empty, empty, empty) != 0
    assert complaint in plugins.take_messages().decode()
    plugin.destroy()


def toolkit_missing() -> str | None:
    if shutil.which("cmake") is None:
        return "there is no cmake"
    try:
        find_toolkit()
    except BuildError as error:
        return str(error)
    return None


@pytest.mark.skipif(toolkit_missing() is not None, reason=f"the plugin cannot be built here: {toolkit_missing()}")
@pytest.mark.slow
def test_cmake_builds_the_library_with_nvcc_and_shows_only_what_tensorrt_looks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-Xcicc -O0 -Xptxas -O0")  # a tenth of the time
    compiler = find_toolkit().nvcc
    configure = ["cmake", "-S", PLUGIN, "-B", tmp_path, f"-DTENSORRT_ROOT={HEADERS}"]
    subprocess.run([*configure, "-DCMAKE_CUDA_ARCHITECTURES=90", f"-DCMAKE_CUDA_COMPILER={compiler}"], check=True)
    subprocess.run(["cmake", "--build", tmp_path], check=True)
    library = tmp_path / "libops_dcnv3_tensorrt.so"
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    shown = [line.split()[-1] for line in symbols.stdout.splitlines() if " T " in line]
    assert sorted(shown) == ["getCreators", "setLoggerFinder"]


def installed_rtx() -> object | None:
    try:
        return library("tensorrt_rtx")
    except UserError:
        return None


@pytest.mark.skipif(installed_rtx() is None, reason="TensorRT for RTX is not installed")
def test_the_registry_of_tensorrt_for_rtx_takes_the_plugin():
    # The real library reads the virtual functions of what was compiled against the tests' declarations.
    import numpy as np

    trt = installed_rtx()
    registry = trt.get_plugin_registry()
    assert registry.load_library(str(compiled("tensorrt_plugin_driver.cpp"))) is not None
    creator = registry.get_creator("DCNv3", "1", "ops_dcnv3")
    assert {field.name for field in creator.field_names} == set(attributes(Case()))
    groups = trt.PluginField("groups", np.array([4], np.int32), trt.PluginFieldType.INT32)
    plugin = creator.create_plugin("node", trt.PluginFieldCollection([groups]), trt.TensorRTPhase.BUILD)
    for kind in (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME):
        assert plugin.get_capability_interface(kind) is not None
