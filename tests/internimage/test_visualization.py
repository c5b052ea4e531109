"""`internimage visualize`: maps agree with their definitions, and every model gets the pictures that it can have."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

import internimage
from classification.configs.defaults import DEFAULTS
from classification.data import build_transform
from classification.inference import ClassificationPredictor, Classifier
from internimage.__main__ import main
from internimage.visualization.maps import effective_receptive_field, grad_cam, principal_components
from internimage.visualization.pictures import _kernels, _side_around

SHAPE = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 2, 4)}
OF_AN_IMAGE = ["sampling_points", "mask_weights", "feature_pca", "class_activation"]


def tiny_model(kind=internimage.InternImage, **options):
    torch.manual_seed(0)
    return kind(**SHAPE, num_classes=3, **options).eval()


def predictor(model):
    config = CfgNode(DEFAULTS)
    config.DATA.IMG_SIZE = 64
    transform, names = build_transform(config, train=False), ["ant", "bee", "cat"]
    return ClassificationPredictor(Classifier(model, transform, names, config, torch.device("cpu")))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


def test_a_classifier_has_five_pictures_and_stays_as_it_was(image):
    model = tiny_model()
    pictures = internimage.visualize(predictor(model), image, queries=[(3, 4)])
    assert list(pictures) == [*OF_AN_IMAGE, "effective_receptive_field"]
    assert all(min(picture.size) > 300 and picture.getextrema() == ((0, 255),) * 3 for picture in pictures.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def blank(monkeypatch):
    """Figures are not rendered, which takes most of the time."""
    monkeypatch.setattr("internimage.visualization.pictures.render", lambda figure: Image.new("RGB", (1, 1)))


def test_several_images_have_numbered_pictures_and_one_mean_receptive_field(image, blank, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    names = list(internimage.visualize(predictor(tiny_model()), [image, image]))
    of_images = [f"{n}_image {n}_{name}" for n in range(2) for name in OF_AN_IMAGE if name != "class_activation"]
    assert names == [*of_images, "effective_receptive_field"]
    assert capsys.readouterr().out.count("it needs captum; run pip install 'internimage[visualize]'") == 2


def test_a_model_with_dcnv4_has_no_sampling_points_but_the_other_pictures(image, blank, capsys):
    pictures = internimage.visualize(predictor(tiny_model(internimage.FlashInternImage)), image)
    assert list(pictures) == ["feature_pca", "class_activation", "effective_receptive_field"]
    assert "no picture mask_weights: sampling points need DCNv3" in capsys.readouterr().out


def test_another_backbone_is_refused_in_one_line(image):
    with pytest.raises(internimage.UserError, match="needs a model with InternImage or FlashInternImage; got Linear"):
        internimage.visualize(predictor(nn.Linear(1, 1)), image)


def test_the_receptive_field_without_offsets_ends_where_the_theoretical_one_ends():
    first, second, *_ = effective_receptive_field(tiny_model(), torch.randn(1, 3, 128, 128))
    # Stem: 7 pixels. Operator and depthwise branch: 3 x 3 at stride 4. Downsampling and operator of level 2 add
    # (3 - 1) * 4 and (3 - 1) * 8.
    for field, side in ((first, 7 + 2 * 4), (second, 7 + 2 * 4 + 2 * 4 + 2 * 8)):
        for sums in (field.sum(0), field.sum(1)):
            seen = sums.nonzero().flatten()
            assert (seen.min().item(), seen.max().item()) == (64 - side // 2, 64 + side // 2)


def test_the_receptive_field_is_the_mean_absolute_gradient_over_combinations_of_channels():
    model, image = tiny_model(), torch.randn(1, 3, 64, 64)

    def center(x):
        return model.forward_intermediates(x, intermediates_only=True)[3][0, :, 1, 1]

    jacobian = torch.autograd.functional.jacobian(center, image)[:, 0]  # (C, 3, H, W)
    expected = jacobian.square().sum(0).sqrt().sum(0) * (2 / torch.pi) ** 0.5  # of a normally distributed combination
    field = effective_receptive_field(model, image, directions=64)[3]
    assert torch.allclose(field, expected, rtol=0.5, atol=float(expected.max()) * 0.05)
    assert field.sum().item() == pytest.approx(expected.sum().item(), rel=0.06)


def test_the_square_around_the_middle_holds_the_share():
    field = torch.zeros(21, 31)
    field[8, 10], field[8, 13] = 3.0, 1.0
    assert [_side_around(field, 8, 10, share) for share in (0.5, 0.75, 0.76, 1.0)] == [1, 1, 7, 7]


def test_principal_components_are_those_of_the_covariance():
    patterns = torch.rand(6, 5, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1.0])
    mixing = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(1)))[0].T
    colors, share = principal_components(patterns @ mixing)
    assert colors.shape == (6, 5, 3) and colors.min() == 0 and colors.max() == 1
    assert share == pytest.approx(1)
    assert abs(np.corrcoef(colors[..., 0].flatten(), patterns[..., 0].flatten())[0, 1]) > 0.97
    assert principal_components(torch.rand(1, 1, 8))[0].shape == (1, 1, 3)


def test_class_activation_is_grad_cam_of_the_class():
    model, image = tiny_model(), torch.randn(1, 3, 64, 64)
    nn.init.normal_(model.head.weight)
    maps = grad_cam(model, image, 2)
    assert [tuple(values.shape) for values in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    feature = model.forward_intermediates(image, intermediates_only=True)[3]
    (gradient,) = torch.autograd.grad(model.forward_head(feature)[0, 2], feature)
    expected = (gradient.mean((2, 3), keepdim=True) * feature).sum(1).relu()[0]
    assert expected.any() and torch.allclose(maps[3], expected, atol=1e-6)


def test_kernels_show_the_points_where_they_lie_and_a_gap_for_a_removed_centre():
    drawn = _kernels(torch.arange(18.0).reshape(2, 9))
    assert drawn.shape == (3, 7)
    assert drawn[:, :3].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]  # points run down the columns
    assert np.isnan(drawn[:, 3]).all()
    drawn = _kernels(torch.arange(8.0)[None])
    assert drawn[0].tolist() == [0, 3, 5] and np.isnan(drawn[1, 1])


def test_the_command_writes_the_pictures_and_refuses_a_missing_image(image, blank, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("internimage.commands.load", lambda *args, **options: predictor(tiny_model()))
    Image.fromarray(image).save(tmp_path / "photo.png")
    words = ["visualize", str(tmp_path / "photo.png"), "--model", "internimage_t_1k_224", "--query", "3,4", "40,50"]
    main([*words, "--output", str(tmp_path / "new")])
    assert {path.stem for path in (tmp_path / "new").iterdir()} == {*OF_AN_IMAGE, "effective_receptive_field"}
    with pytest.raises(SystemExit) as stop:
        main(["visualize", str(tmp_path / "none.png"), "--model", "internimage_t_1k_224"])
    assert stop.value.code == 2 and "no image at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--query", "20"])
    assert "20 is not a pixel; give X,Y" in capsys.readouterr().err
    with pytest.raises(internimage.UserError, match="no images to visualize"):
        internimage.visualize(predictor(tiny_model()), [])
