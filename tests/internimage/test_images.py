"""Reading images: values of 12 bits in files of 16 bits."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from internimage import images
from internimage.images import decode_rgb, read_image


def written(path, highest):
    values = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    monkeypatch.setattr(images, "_dark", [])


def test_the_first_file_that_becomes_nearly_black_is_named_with_its_highest_value_and_the_factor(tmp_path):
    first, second = written(tmp_path / "xray.png", 4000), written(tmp_path / "other.tiff", 900)
    with pytest.warns(UserWarning, match=r"xray\.png becomes nearly black: .* end at 4000, and .* 12 bits, .* by 16$"):
        picture = read_image(first)
    assert np.asarray(picture).max() == 16  # as before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(second)


def test_an_image_from_memory_is_named_too(tmp_path):
    data = io.BytesIO(written(tmp_path / "a.png", 900).read_bytes())
    with pytest.warns(UserWarning, match=r"^inside\.zip: a\.png becomes .* 10 bits, multiply them by 64$"):
        decode_rgb(data, "inside.zip: a.png")


@pytest.mark.parametrize("highest", [0, 20000, 65535])
def test_black_and_bright_files_are_not_named(highest, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(read_image(written(tmp_path / "a.png", highest))).max() == round(highest / 257)
