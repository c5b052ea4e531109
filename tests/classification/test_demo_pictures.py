"""The pictures: sampling points must lie where the operator reads, and figures must say what is so."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from classification.trainer.tracking import read_history
from internimage import InternImage
from internimage.errors import UserError
from internimage.figures import save_figure
from internimage.visualization.sampling_points import (
    collect_points,
    layer_points,
    nearest_pixel,
    pick_queries,
    sampling_figure,
)
from ops_dcnv3 import DCNv3


def tiny_model(**options):
    torch.manual_seed(0)
    return InternImage(channels=8, depths=(1, 2, 1, 1), groups=(1, 2, 2, 4), num_classes=3, **options).eval()


def offset_by(layer, x, y):
    """Make every point of `layer` move by (x, y) of its pixels."""
    nn.init.zeros_(layer.offset.weight)
    layer.offset.bias.data = torch.tensor([x, y]).repeat(len(layer.offset.bias) // 2)


def test_without_offsets_the_points_of_every_level_form_its_regular_grid_in_image_pixels():
    levels = collect_points(tiny_model(), torch.rand(3, 64, 64))
    assert [level.stride for level in levels] == [4, 8, 16, 32]
    for level in levels:
        rows, cols = level.x.shape[:2]
        assert (rows, cols) == (64 // level.stride, 64 // level.stride)
        for row, col in ((0, 0), (rows - 1, cols - 1), (rows // 2, 0)):
            expected = {((col + i) * level.stride, (row + j) * level.stride) for i in (-1, 0, 1) for j in (-1, 0, 1)}
            for x, y in zip(level.x[row, col], level.y[row, col]):  # every group
                assert set(zip(x.tolist(), y.tolist())) == expected


def test_offset_scale_dilates_the_grid_and_a_removed_center_is_not_drawn():
    levels = collect_points(tiny_model(offset_scale=2.0, remove_center=True), torch.rand(3, 64, 64))
    x, y = levels[0].x[5, 7, 0], levels[0].y[5, 7, 0]
    expected = {(4 * (7 + i), 4 * (5 + j)) for i in (-2, 0, 2) for j in (-2, 0, 2)} - {(28, 20)}
    assert set(zip(x.tolist(), y.tolist())) == expected


def test_an_offset_moves_the_points_to_the_right_and_down_in_pixels_of_its_level():
    model = tiny_model()
    offset_by(model.levels[1].blocks[-1].dcn, 0.5, 2.0)
    level = collect_points(model, torch.rand(3, 64, 64))[1]
    assert torch.equal(level.x[0, 0, :, 4], torch.full((2,), 4.0))  # the kernel's middle point: 0.5 * 8
    assert torch.equal(level.y[0, 0, :, 4], torch.full((2,), 16.0))
    assert level.undeformed_x[0, 0, 4] == 0


def test_the_operator_reads_exactly_at_the_points_that_are_drawn():
    layer = DCNv3(4, group=1)
    nn.init.eye_(layer.input_proj.weight)
    offset_by(layer, 2.0, -1.0)
    nn.init.normal_(layer.mask.bias)
    x = torch.rand(1, 12, 12, 4, requires_grad=True)
    (read,) = torch.autograd.grad(layer(x)[0, 6, 5].sum(), x)
    points = layer_points(layer, x, stride=1)
    drawn = set(zip(points.y[6, 5, 0].int().tolist(), points.x[6, 5, 0].int().tolist()))
    # The depthwise branch also looks at the 3x3 neighbourhood, but constant offsets and masks pass no gradient there.
    assert drawn == set(map(tuple, read[0].abs().sum(-1).nonzero().tolist()))


def test_weights_are_the_softmax_of_the_mask_over_the_points_of_a_group():
    model = tiny_model()
    nn.init.normal_(model.levels[0].blocks[0].dcn.mask.bias)
    level = collect_points(model, torch.rand(3, 64, 64))[0]
    logits = model.levels[0].blocks[0].dcn.mask.bias.reshape(1, 9)
    assert torch.allclose(level.weight[3, 3], logits.softmax(-1))


@pytest.mark.parametrize(("downsamplings", "pixel"), [(0, 5), (1, 3)])
def test_a_feature_pixel_is_centred_on_the_image_pixel_where_its_query_is_drawn(downsamplings, pixel):
    model = tiny_model()
    stages = nn.Sequential(model.patch_embed, *(level.downsample for level in model.levels[:downsamplings]))
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    (seen,) = torch.autograd.grad(stages(image)[0, pixel, pixel].square().sum(), image)
    rows = seen.abs().sum((0, 1, 3)).nonzero()
    stride = 4 * 2**downsamplings
    assert (rows.min() + rows.max()) / 2 == stride * pixel


def test_collecting_points_leaves_the_model_as_it_was():
    model = tiny_model().train()
    collect_points(model, torch.rand(3, 64, 64))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_models_with_another_operator_are_refused_in_one_line():
    model = tiny_model()
    model.levels[2].blocks[-1].dcn = nn.Identity()
    with pytest.raises(UserError, match="DCNv3, but this model has Identity layers"):
        collect_points(model, torch.rand(3, 64, 64))


def test_a_query_is_drawn_at_the_nearest_pixel_inside_the_level():
    level = collect_points(tiny_model(), torch.rand(3, 64, 64))[2]
    assert nearest_pixel(level, (30, 20)) == (2, 1)
    assert nearest_pixel(level, (63, 0)) == (3, 0)


def test_chosen_queries_lie_on_the_object_and_apart():
    rgb = torch.zeros(64, 64, 3)
    rgb[16:48, 24:40] = 1
    queries = pick_queries(rgb)
    assert len(set(queries)) == 3
    assert all(24 <= x < 40 and 16 <= y < 48 for x, y in queries)
    assert len(pick_queries(torch.zeros(64, 64, 3))) == 3  # an empty image has no object, but is no error


def test_the_sampling_figure_has_a_panel_per_query_and_level(tmp_path):
    levels = collect_points(tiny_model(), torch.rand(3, 64, 64))
    figure = sampling_figure(torch.rand(64, 64, 3), levels, [(3, 4), (30, 31)])
    assert len(figure.axes) == 8
    save_figure(figure, tmp_path / "new" / "points.png")
    assert (tmp_path / "new" / "points.png").stat().st_size > 10000


def test_lines_of_a_history_that_are_no_records_are_left_out_with_a_note(tmp_path, capsys):
    good = ['{"epoch": 0, "train_loss": 2.0}', '{"epoch": 1, "train_loss": NaN}']
    bad = ['{"epoch": 2, "trai', '{"train_loss": 1.0}', "[1]", '{"epoch": "x"}', '{"epoch": null}', "[" * 10_000]
    path = tmp_path / "history.jsonl"
    path.write_bytes("\n".join(good + bad).encode() + b"\n\xff\x00\n")
    records = read_history(path, print)
    assert [record["epoch"] for record in records] == [0, 1]
    assert "skipping 7 of 9 lines" in capsys.readouterr().out


def test_a_picture_of_unknown_type_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot write the picture"):
        save_figure(Figure(), tmp_path / "curve.xyz")
