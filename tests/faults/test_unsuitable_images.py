"""Images that used to give wrong pixels or much too many: each reader turns, scales or refuses them alike."""

import struct
import zlib

import numpy as np
import pytest
from image_readers import READERS, UPRIGHT, save_turned
from PIL import Image

from internimage.errors import UserError
from internimage.images import MAX_ASPECT_RATIO, decode_rgb


@pytest.fixture
def refusal():
    """A function that gives the one-line message with which a reader refuses a file."""

    def message_of(read, path):
        with pytest.raises(UserError) as error:
            read(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    return message_of


reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@reader
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_a_turned_photograph_is_read_upright(read, orientation, suffix, tmp_path):
    pixels = np.asarray(read(save_turned(tmp_path / f"photo.{suffix}", orientation)))
    assert pixels.shape == UPRIGHT.shape
    assert np.abs(pixels.astype(int) - UPRIGHT).max() <= 12  # JPEG's loss; the colours are at least 120 apart


@reader
@pytest.mark.parametrize("damage", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_damaged_exif_data_lose_no_image(read, damage, tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "photo.jpg", exif=damage, quality=100)
    assert read(tmp_path / "photo.jpg").size == UPRIGHT.shape[1::-1]


@reader
def test_an_exif_entry_that_cannot_be_written_again_does_not_hinder_turning(read, tmp_path):
    # Two entries, 12 bytes each: the orientation 6, and a width (normally an integer) of type text.
    entries = struct.pack("<HHI4s", 0x100, 2, 3, b"ab\0\0") + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    Image.fromarray(np.ascontiguousarray(np.rot90(UPRIGHT))).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    assert read(tmp_path / "photo.jpg").size == UPRIGHT.shape[1::-1]


GREY = np.array([[0, 128, 129, 255, 256, 257, 1000, 32768, 65278, 65535]] * 2, np.uint16)


@reader
@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_divided_by_257(read, suffix, tmp_path):
    path = tmp_path / f"grey.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 10 2 65535\n" + GREY.astype(">u2").tobytes())
    else:
        Image.fromarray(GREY).save(path)
    expected = np.round(GREY / 257)
    assert (np.asarray(read(path)) == expected[..., None]).all()


@reader
@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_32_bit_pixels_are_refused_by_name_and_mode(read, dtype, mode, tmp_path, refusal):
    Image.fromarray(GREY.astype(dtype)).save(tmp_path / "deep.tiff")
    message = refusal(read, tmp_path / "deep.tiff")
    assert "deep.tiff" in message and f"mode {mode})" in message and "convert it to 8 or 16 bits" in message


def png_header(width, height):
    """A PNG file of that size with next to no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@reader
@pytest.mark.parametrize("size", [(12000, 1), (1, 12000)])
def test_an_extreme_aspect_ratio_is_refused_before_any_pixel_is_read(read, size, tmp_path, refusal):
    (tmp_path / "line.png").write_bytes(png_header(*size))
    message = refusal(read, tmp_path / "line.png")
    assert "line.png" in message and f"{size[0]} x {size[1]}" in message and f"at most {MAX_ASPECT_RATIO}" in message


def test_the_limit_of_the_aspect_ratio_itself_is_allowed(tmp_path):
    Image.new("RGB", (2 * MAX_ASPECT_RATIO, 2)).save(tmp_path / "long.png")
    assert decode_rgb(tmp_path / "long.png").size == (2 * MAX_ASPECT_RATIO, 2)


@reader
def test_a_decompression_bomb_is_refused_by_name(read, tmp_path, refusal):
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    message = refusal(read, tmp_path / "bomb.png")
    assert "bomb.png" in message and "2500000000 pixels" in message and "limit of" in message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "16-bit RGB"])
def test_all_readers_give_the_same_pixels_of_every_other_kind(mode, tmp_path):
    path = tmp_path / "picture.tiff"
    if mode == "16-bit RGB":
        path = tmp_path / "picture.ppm"
        path.write_bytes(b"P6 10 2 65535\n" + np.stack([GREY] * 3, -1).astype(">u2").tobytes())
    else:
        Image.fromarray(UPRIGHT).convert(mode.replace("LA", "L")).convert(mode).save(path)
    first, *others = [np.asarray(read(path)) for read in READERS.values()]
    assert first.shape[2] == 3 and first.dtype == np.uint8 and first.max() > 200
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_detection_and_segmentation_read_upright_too_in_training_and_in_the_demo(orientation, tmp_path):
    mmcv = pytest.importorskip("mmcv")
    from mmcv.transforms import LoadImageFromFile

    path = save_turned(tmp_path / "photo.png", orientation)
    training = LoadImageFromFile()({"img_path": str(path)})["img"]
    assert np.array_equal(training[..., ::-1], UPRIGHT)
    assert np.array_equal(mmcv.imread(str(path)), training)


def test_detection_and_segmentation_read_label_maps_as_stored(tmp_path):
    mmcv = pytest.importorskip("mmcv")
    path = save_turned(tmp_path / "labels.png", 6)
    assert mmcv.imread(str(path), flag="unchanged", backend="pillow").shape[:2] == (48, 32)
