"""Files with bytes or words changed at random, and what each reader may do with them: take them or raise `UserError`.

Hypothesis chooses the changes and shrinks those that do harm.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from classification.config import get_config, parse_args
from classification.data.samples import read_list
from classification.inference import read_image
from internimage import integrity
from internimage.checkpoint import load_file, save_atomic
from internimage.errors import UserError

__all__ = ["TARGETS", "mutate_often"]

ROOT = Path(__file__).parents[2]
# What is most often mistaken for something else, and what parsers stumble over.
_WORDS = [
    *("-1", "0", "1e9", "1e400", "nan", ".inf", "-0.0", "5e-4", "9" * 30, "None", "null", "~", "true", "off"),
    *("[]", "{}", "[[", "]]", "{", "}", ": ", "- ", "&a", "*a", "!!python/name:os.system", "!!binary x", "? "),
    *("'", '"', "\\u0000", "\n", "\t", "#", "%", "@", "\ufeff", "é", "😀", "../", "/dev/null", "<<: *a"),
]


@st.composite
def _changed(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` after one to four changes: a byte, a piece cut out, doubled or moved, or a word put in."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["byte", "word", "replace", "cut", "double", "end"]))
        if kind == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "word":
            content[place:place] = draw(st.sampled_from(_WORDS)).encode()
        elif kind == "replace":
            content[place : place + length] = draw(st.sampled_from(_WORDS)).encode()
        elif kind == "cut":
            del content[place : place + length]
        elif kind == "double":
            content[place:place] = content[place : place + length]
        else:
            del content[place:]
    return bytes(content)


def _content() -> dict:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.rand(size, generator=generator) for i, size in enumerate([7, 300, 1])}
    return {"model": weights, "epoch": 3, "config": "BASE: ['']"}


def _same(read: dict) -> bool:
    expected = _content()
    return {**read, "model": None} == {**expected, "model": None} and all(
        torch.equal(read["model"][key], value) for key, value in expected["model"].items()
    )


def _read_yaml(path: Path) -> None:
    get_config(parse_args(["--cfg", str(path)]))


def _read_list(path: Path) -> None:
    read_list(path, [path.parent])


def _read_checkpoint(path: Path) -> None:
    integrity._verified.clear()  # the clock may be too coarse to tell one write from the next
    assert _same(load_file(path)), "a changed checkpoint was read as if nothing had happened"


def _read_coco(path: Path) -> None:
    from internimage.mm.own_data.readers import READERS, Problems

    READERS["coco"](path, path.parent, Problems())


def _yaml() -> bytes:
    return (ROOT / "classification/configs/internimage_t_1k_224.yaml").read_bytes()


def _list() -> bytes:
    return json.dumps([[f"image{i}.png", i] for i in range(5)]).encode()


def _coco() -> bytes:
    box = {"category_id": 1, "image_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "file_name": "content.bin", "width": 8, "height": 8}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": i, **box} for i in range(2)],
    }
    return json.dumps(coco).encode()


def _checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_atomic(_content(), Path(folder) / "x.pth")
        return (Path(folder) / "x.pth").read_bytes()


def _image() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Image.effect_noise((24, 16), 80).convert("RGB").save(Path(folder) / "x.png")
        return (Path(folder) / "x.png").read_bytes()


TARGETS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "configuration (YAML)": (_yaml, _read_yaml),
    "list of images (JSON)": (_list, _read_list),
    "annotations (JSON)": (_coco, _read_coco),
    "checkpoint": (_checkpoint, _read_checkpoint),
    "image": (_image, read_image),
}


def mutate_often(target: str, count: int, folder: Path, *, seed: int | None = None, report: Callable = str) -> None:
    """Read `count` changed files of a kind. Raises what a reader raises, unless it is a `UserError`.

    Args:
        seed: of the changes; without one they are the same each time.
        report: called with the number of files so far.
    """
    original, read = TARGETS[target]
    path = folder / "content.bin"
    done = 0

    @settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate] if seed is None else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(_changed(original()))
    def attempt(content: bytes) -> None:
        nonlocal done
        done += 1
        report(done)
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error), "a message of more than one line"

    (attempt if seed is None else hypothesis.seed(seed)(attempt))()
