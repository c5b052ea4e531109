"""Models rewritten for export compute the same; files are standard ONNX and say what the model needs."""

import argparse

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import golden
from internimage import FlashInternImage, InternImage, UserError
from internimage.export import cli, formats
from internimage.export import onnx as onnx_format
from internimage.export.cores import CORES, prepare
from internimage.export.parity import Parity, check_parity, match_warning, parity_table
from internimage.export.progress import phase
from internimage.export.sampling import SAMPLERS, Predictors
from internimage.export.spec import Check, Exportable, elementwise_error
from ops_dcnv3 import dcnv3
from ops_dcnv3.reference import Geometry

GEOMETRIES = {
    "plain": Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 1.0, False, True),
    "scaled, no centre": Geometry(3, 3, 1, 1, 1, 1, 1, 1, 4, 2.0, True, True),
    "strided, dilated, rectangular": Geometry(3, 5, 2, 1, 2, 3, 2, 1, 2, 1.5, False, True),
    "given weights, no centre": Geometry(5, 3, 1, 2, 1, 0, 1, 2, 1, 0.5, True, False),
}


def worst_error(item: Exportable, runtime, *shapes: tuple[int, ...]) -> float:
    """The largest relative error of a runtime at several shapes; by default at the one that was traced."""
    samples = [golden.image(*shape, seed=i) for i, shape in enumerate(shapes)] or [item.images]
    return max(row.relative for row in check_parity(item, Check(samples), runtime))


@pytest.mark.parametrize("core", [core for core in CORES if core != "custom"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_core_computes_the_operator_from_features(core, name):
    g = GEOMETRIES[name]
    value, features = golden.image(2, 9, 8, 16, seed=1), golden.image(2, *g.output_size(9, 8), 12, seed=2)
    rows = g.groups * g.points
    weights = [
        golden.image(*shape, seed=i) / 4 for i, shape in enumerate([(2 * rows, 12), (2 * rows,), (rows, 12), (rows,)])
    ]
    sampler = SAMPLERS[core](g, Predictors(*weights))
    offset, mask = nn.functional.linear(features, *weights[:2]), nn.functional.linear(features, *weights[2:])
    pairs = [(g[i], g[i + 1]) for i in (0, 2, 4, 6)]
    expected = dcnv3(value, offset, mask, *pairs, *g[8:11], backend="torch", mask_is_logits=g.mask_is_logits)
    assert golden.relative_error(sampler(value, features), expected) < 1e-5


@pytest.mark.parametrize("core", ["grid_sample", "deform_conv"])
@pytest.mark.parametrize("name", ["mini_h_96", "mini_l_64", "mini_flash_64"])
def test_rewritten_models_give_the_original_projects_logits(core, name):
    reference = golden.golden_model(name)
    model = golden.fill((FlashInternImage if "flash" in name else InternImage)(**reference.kwargs))
    with torch.no_grad():
        logits = prepare(model, core)(reference.input)
    assert golden.relative_error(logits, torch.from_numpy(reference.outputs["logits"])) < 1e-5


def test_the_model_itself_is_left_as_it_was():
    model = golden.fill(InternImage(channels=16, depths=[1], groups=[1], num_classes=2, layer_scale=0.1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepare(model, "deform_conv")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_default_file_is_standard_and_right_at_any_size(small, small_onnx):
    shapes = (1, 3, 64, 64), (3, 3, 64, 64), (1, 3, 48, 80), (3, 3, 75, 50)
    assert worst_error(small(1, 3, 64, 64), onnx_format.load(small_onnx), *shapes) < 1e-5
    proto = onnx.load(small_onnx)
    # TensorRT's parsers before 2026 misread GridSample of opset 20.
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 19)]
    modes = {node.attribute[i].s for node in proto.graph.node for i in range(len(node.attribute))}
    assert b"bilinear" in modes and b"linear" not in modes
    assert {item.key: item.value for item in proto.metadata_props} == {"task": "classification", "mean": "[0.5]"}
    assert b"/internimage/" not in small_onnx.read_bytes()  # no stack traces


def test_weights_too_large_for_one_file_are_beside_it(small, tmp_path, monkeypatch):
    openvino_format = pytest.importorskip("internimage.export.openvino")
    monkeypatch.setattr(onnx_format, "_LARGEST_FILE", 1000)
    item = small(1, 3, 32, 32, depths=[1], groups=[2])
    path, converted = tmp_path / "model.onnx", tmp_path / "model.xml"
    onnx_format.write(item, path)
    openvino_format.convert(path, converted)
    assert (tmp_path / "model.onnx.data").stat().st_size > 10000
    for runtime in (onnx_format.load(path), openvino_format.load(converted)):
        assert worst_error(item, runtime) < 1e-5


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("core", ["deform_conv", "custom"])
def test_a_static_file_of_other_cores_is_right(small, core, half, tmp_path):
    item = small(2, 3, 48, 32, depths=[1], groups=[2], remove_center=True, offset_scale=1.5, layer_scale=0.5)
    path = tmp_path / "model.onnx"
    onnx_format.write(item, path, core=core, half=half)
    assert worst_error(item, onnx_format.load(path, threads=1)) < (2e-2 if half else 1e-5)
    kind, domain = ("DeformConv", "") if core == "deform_conv" else ("DCNv3", "ops_dcnv3")
    assert [node.domain for node in onnx.load(path).graph.node if node.op_type == kind] == [domain]


def test_errors_count_what_is_not_a_number_and_what_has_another_shape():
    good = torch.tensor([1.0, -2.0])
    assert elementwise_error((good + 1e-2,), (good,)) == pytest.approx((1e-2, 5e-3), rel=1e-4)
    for bad in (torch.tensor([1.0, float("nan")]), torch.ones(3)):
        assert elementwise_error((bad,), (good,)) == (float("inf"), float("inf"))


class Ranking(nn.Module):
    """The index of the largest pixel, two of which nearly tie, and a base: it jumps if pixels change by a millionth."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, images):
        return (images.flatten(1).argmax(1) + self.base,)


@pytest.mark.parametrize(("base", "error", "passes"), [(1000.0, 9.0, True), (1000.0, 500.0, False), (0.0, 9.0, False)])
def test_a_model_that_jumps_a_little_at_ties_may_be_as_far_off_as_it_moves_itself(base, error, passes):
    images = torch.zeros(1, 3, 4, 4)
    images.view(-1)[[3, 12]] = torch.tensor([1.0, 1.0 + 1e-7])
    item = Exportable(Ranking(base), images, ("rank",))
    (row,) = check_parity(item, Check([images]), lambda array: [item.reference(images)[0].numpy() - error], 1e-4)
    assert row.passes(1e-4) == passes and "change by" in parity_table([row])


def test_small_errors_of_models_that_do_not_jump_are_held_to_the_tolerance(small):
    item = small(1, 3, 64, 64)
    wrong = item.reference(item.images)[0].numpy() * 1.001
    (row,) = check_parity(item, Check([item.images]), lambda _: [wrong], 1e-4)
    assert not row.passes(1e-4)


@pytest.mark.parametrize(
    ("counts", "warning"),
    [([(3, 3), (0, 0)], None), ([(0, 0)], "found no object"), ([(1, 4), (3, 4)], "4 of 8"), ([None], None)],
)
def test_a_comparison_of_next_to_nothing_is_warned_about(counts, warning):
    rows = [Parity((1, 3, 4, 4), 0.0, 0.0, count) for count in counts]
    found = match_warning(rows)
    assert found is None if warning is None else warning in found
    assert ("objects compared" in parity_table(rows)) == (counts != [None])


def test_a_phase_is_named_when_it_begins_and_timed_when_it_ends(capsys):
    with phase("Compiling"):
        assert capsys.readouterr().err == "Compiling ..."
    assert capsys.readouterr().err == " 0 s\n"
    with pytest.raises(ValueError), phase("Compiling"):
        raise ValueError
    assert capsys.readouterr().err == "Compiling ...\n"


def options(tmp_path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(["--output", str(tmp_path / "model.onnx"), "--repeats", "0", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnxx"], "expected one of onnx, openvino"),
        (["--core", "magic"], "grid_sample"),
        (["--output", "model.pb"], "ends in .onnx"),
        (["--int8"], "needs --images"),
        (["--int8", "--half", "--images", "."], "cannot be combined"),
        (["--int8", "--core", "custom", "--images", "."], "omit --core"),
        (["--symmetric"], "give both"),
    ],
)
def test_requests_that_cannot_be_met_end_in_one_line(words, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        cli.check_arguments(options(tmp_path, *words))
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "onnx", formats.Format("onnx", ".onnx", {"no_such": "no-such"}, ("custom",)))
    with pytest.raises(UserError, match="pip install no-such"):
        formats.find_format("onnx").choose(None)


@pytest.mark.parametrize("size", [[16], [64, 64, 64], [64, 50]])
def test_sizes_that_the_model_cannot_take_are_refused(size, tmp_path):
    with pytest.raises(UserError, match="--size"):
        cli.image_size(options(tmp_path, "--size", *map(str, size)), (64, 64), multiple=32)


class WrongRuntime:
    """A format's module: writes a file, and computes something else."""

    @staticmethod
    def write(exportable, path, *, core, half) -> None:
        path.write_bytes(b"file")

    @staticmethod
    def load(path, *, threads):
        return lambda images: [np.zeros((len(images), 5), np.float32)]


def test_a_file_that_disagrees_is_renamed_and_fails(small, monkeypatch, tmp_path, capsys):
    item = small(1, 3, 64, 64)
    monkeypatch.setattr(formats.Format, "_module", lambda self: WrongRuntime)
    with pytest.raises(UserError, match="exceeds"):
        cli.run(item, Check([item.images]), options(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.failed"]
    assert "max rel error" in capsys.readouterr().out
