"""The page of docs/web, in a headless Chromium: its answers are PyTorch's, and it explains what it cannot use."""

import base64
import functools
import http.server
import io
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from classification.export import main as export
from classification.inference import add_model_arguments, load_classifier
from classification.models import build_model
from internimage.errors import ArgumentParser
from internimage.export.spec import spread_sampling_points
from internimage.visualization.sampling_points import collect_points, nearest_pixel

sync_playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
CLASSES = ["bag", "boot", "coat", "dress", "shirt", "shoe"]
CONFIG = """
DATA: {DATASET: folder, IMG_SIZE: 64}
MODEL:
  TYPE: intern_image
  NUM_CLASSES: 6
  INTERN_IMAGE: {CHANNELS: 16, DEPTHS: [1, 1], GROUPS: [1, 2], OFFSET_SCALE: 2.0}
"""
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
    pytest.mark.skipif(not shutil.which("npm"), reason="npm, which installs ONNX Runtime Web, is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    run = subprocess.run(["make", "web-page", f"WEB={folder}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    """A classifier with random weights, whose export is in the page's folder."""
    config, names, checkpoint = (folder / name for name in ("tiny.yaml", "names.txt", "tiny.pth"))
    config.write_text(CONFIG)
    names.write_text("\n".join(CLASSES))
    words = ["--cfg", str(config), "--class-names", str(names)]
    parser = ArgumentParser()
    add_model_arguments(parser)
    torch.manual_seed(0)
    model = build_model(load_classifier(parser.parse_args(words), weights=False).config)
    spread_sampling_points(model)
    torch.nn.init.normal_(model.head.weight)
    torch.save({"model": model.state_dict()}, checkpoint)
    words += ["--checkpoint", str(checkpoint)]
    options = ["--static", "--repeats", "0", "--sampling-points", "--output", str(folder / "model.onnx")]
    export([*words, *options])
    return load_classifier(parser.parse_args([*words, "--device", "cpu"]))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(folder, classifier):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(browser, address):
    """The page on a small phone in dark mode; the addresses that it asks for are in `page.asked`."""
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    settle(page)
    yield page
    page.close()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photograph.png"
    y, x = np.mgrid[:83, :120]
    noise = np.random.default_rng(0).integers(0, 60, (83, 120, 3))
    pixels = np.stack([x * 1.5, y * 2, 90 + 80 * np.sin(x / 9) * np.cos(y / 7)], -1) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def settle(page):
    """Wait until the page has done what it was asked."""
    page.evaluate("import('./app.js').then(({ state }) => state.queue)")


def choose(page, file, kind="image"):
    page.set_input_files(f"#{kind}-file", file)
    settle(page)


def assert_shown(page, classifier, image):
    """The page's probabilities of an image, and the five best that a reader sees, are PyTorch's."""
    expected = classifier.logits(classifier.transform(image)[None]).softmax(1)[0]
    found = page.evaluate("import('./app.js').then(({ state }) => state.answer.probabilities)")
    # float32 in two runtimes, logits of about 10; one wrong grey value is 2e-4.
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    top = [f"{CLASSES[index]} {100 * expected[index]:.1f}%" for index in expected.topk(5).indices]
    assert [text.replace("\n", " ") for text in page.locator("#top li").all_inner_texts()] == top
    assert page.inner_text("#status").startswith(f"{CLASSES[int(expected.argmax())]}, ")


def test_a_photograph_is_classified_as_by_pytorch(page, classifier, photograph):
    choose(page, photograph)
    assert_shown(page, classifier, Image.open(photograph).convert("RGB"))


def test_the_points_of_a_clicked_pixel_are_those_of_the_figures(page, classifier, photograph):
    choose(page, photograph)
    box = page.locator("#picture").bounding_box()
    page.click("#picture", position={"x": box["width"] * 14.5 / 64, "y": box["height"] * 50.5 / 64})
    page.press("#picture", "ArrowRight")
    page.press("#picture", "Shift+ArrowUp")
    assert page.evaluate("import('./app.js').then(({ state }) => state.probe)") == [15, 42]
    assert page.inner_text("#probe") == "Column 15, row 42 of 64 x 64 pixels."
    image = classifier.transform(Image.open(photograph).convert("RGB"))
    expected = collect_points(classifier.model, image)
    found = page.evaluate(
        """async () => {
            const { state: { answer, probe } } = await import("./app.js");
            const { pointsAt } = await import("./classifier.js");
            return answer.levels.map((level) => ({ ...pointsAt(level, ...probe), stride: level.stride }));
        }"""
    )
    assert len(found) == len(expected) == 2 == page.locator("#levels figure").count()
    for level, points in zip(found, expected):
        column, row = nearest_pixel(points, (15, 42))
        assert level["stride"] == points.stride
        assert level["center"] == [column * points.stride, row * points.stride]
        groups = torch.stack([part[row, column] for part in (points.x, points.y, points.weight)], -1)
        grid = torch.stack([points.undeformed_x[row, column], points.undeformed_y[row, column]], -1)
        assert (groups[..., :2] - grid).abs().max() > points.stride / 4  # the points do move
        np.testing.assert_allclose(level["groups"], groups.numpy(), atol=2e-3)  # pixels, at distances of up to 100
        np.testing.assert_allclose(level["grid"], grid.numpy())


def test_a_drawing_is_classified_as_by_pytorch(page, classifier):
    page.click("#draw")
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 180, steps=5)
    page.mouse.up()
    settle(page)
    data = page.evaluate("document.getElementById('pad').toDataURL()").partition(",")[2]
    drawing = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert len(drawing.getcolors(2**16)) > 2  # a smooth line
    assert_shown(page, classifier, drawing)


def broken(folder, name, change):
    """The exported classifier with something changed."""
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / name)
    return folder / name


def forget(key, value=None):
    def change(model):
        metadata = {item.key: item.value for item in model.metadata_props} | ({key: value} if value else {})
        onnx.helper.set_model_props(model, {name: text for name, text in metadata.items() if value or name != key})

    return change


def rename_logits(model):
    model.graph.node.append(onnx.helper.make_node("Identity", ["logits"], ["scores"]))
    model.graph.output[0].name = "scores"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget("class_names"), "its metadata have no class_names; export it with classification/export.py"),
        (forget("task", "detection"), "it is a model for detection; this page shows classifiers"),
        (forget("mean", "[0.5]"), "its input is 1 x 3 x 64 x 64, expected 1 x 1 x height x width"),
        (rename_logits, "its outputs are scores, points_0, points_1, expected logits"),
    ],
)
def test_a_model_that_the_page_cannot_use_is_explained_in_one_line(page, folder, change, message):
    choose(page, broken(folder, "wrong.onnx", change), "model")
    found = page.inner_text("#error")
    assert found.startswith(f"wrong.onnx: {message}") and "\n" not in found


def test_after_files_of_another_kind_the_page_goes_on(page, classifier, photograph, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    choose(page, tmp_path / "notes.png")
    assert page.inner_text("#error").startswith("notes.png is not an image that this browser can read; choose a PNG")
    (tmp_path / "notes.onnx").write_text("no model")
    choose(page, tmp_path / "notes.onnx", "model")
    assert page.inner_text("#error") == "notes.onnx: it is not an ONNX file."
    choose(page, photograph)
    assert not page.is_visible("#error")
    assert_shown(page, classifier, Image.open(photograph).convert("RGB"))


def test_a_classifier_without_points_still_classifies(page, classifier, folder, photograph):
    choose(page, photograph)
    choose(page, broken(folder, "plain.onnx", forget("points")), "model")
    assert_shown(page, classifier, Image.open(photograph).convert("RGB"))
    assert "export it with --sampling-points" in page.inner_text("#probe")
    assert not page.locator("#levels figure").count() and not page.is_visible("#error")
    choose(page, folder / "model.onnx", "model")


def test_without_a_model_the_page_says_how_to_make_one(browser, address, folder):
    page = browser.new_page()
    page.route("**/model.onnx", lambda route: route.fulfill(status=404))
    page.goto(address)
    settle(page)
    assert "run `make web`, or choose an exported classifier" in page.inner_text("#error")
    choose(page, folder / "model.onnx", "model")
    assert page.inner_text("#status") == "Choose a picture." and not page.is_visible("#error")
    page.close()


def test_it_fits_a_phone_is_dark_where_asked_and_needs_no_other_server(page, address):
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 64
    assert len(page.asked) > 5 and all(url.startswith((address, "data:", "blob:")) for url in page.asked)
