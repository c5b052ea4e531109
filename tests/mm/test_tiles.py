"""Images larger than a tile: each object is found once, also on a seam, and label maps have no seams."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from scipy import ndimage

from internimage.errors import UserError
from internimage.mm.predictor import MMPredictor
from internimage.mm.tiles import infer_tiles
from internimage.predictor import Predictor

TILE = 64


def objects_of(part):
    """Every connected area of one brightness in `part` is an object of that class, with its exact box and mask."""
    masks = [mask for label in (1, 2) for mask in _areas(part[..., 0] == label)]
    labels = [int(part[..., 0][mask].max()) for mask in masks]
    places = [np.argwhere(mask) for mask in masks]
    boxes = [[*place.min(0)[::-1], *(place.max(0)[::-1] + 1)] for place in places]
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        # Pieces have higher scores than whole objects, and some are too low.
        scores=torch.tensor([1 - mask.sum() / 10_000 for mask in masks]),
        masks=torch.tensor(np.reshape(masks, (-1, *part.shape[:2]))),
    )
    return SampleLike(pred_instances=found)


def _areas(mask):
    numbered, count = ndimage.label(mask)
    return [numbered == number for number in range(1, count + 1)]


class SampleLike(SimpleNamespace):
    def __contains__(self, key):
        return hasattr(self, key)


# x, y, width, height, class: in one tile, on one seam, on both seams, larger than the overlap, larger than a tile,
# two of different classes on one place.
OBJECTS = [
    (5, 5, 9, 9, 1),
    (52, 10, 20, 8, 1),
    (48, 47, 16, 17, 2),
    (20, 48, 8, 50, 2),
    (80, 30, 36, 50, 1),
    (8, 104, 100, 9, 1),
]


def test_each_object_of_an_image_of_many_tiles_is_found_once_with_its_whole_box_and_mask():
    image = np.zeros((2 * TILE, 2 * TILE, 3), np.uint8)
    for x, y, w, h, label in OBJECTS:
        image[y : y + h, x : x + w] = label
    found = infer_tiles(objects_of, image, TILE, 0.25, 0.0).pred_instances
    expected = sorted((label, x, y, x + w, y + h) for x, y, w, h, label in OBJECTS)
    assert sorted((k, *map(int, box)) for k, box in zip(found.labels.tolist(), found.bboxes.tolist())) == expected
    for mask, box in zip(found.masks.numpy(), found.bboxes.int().tolist()):
        assert mask[box[1] : box[3], box[0] : box[2]].all() and mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_neighbours_of_one_class_stay_two_objects_and_an_empty_image_has_none():
    image = np.zeros((TILE, 2 * TILE, 3), np.uint8)
    image[10:30, 40:60] = image[10:30, 62:82] = 1
    assert len(infer_tiles(objects_of, image, TILE, 0.5, 0.0).pred_instances) == 2
    image[:] = 0
    assert infer_tiles(objects_of, image, TILE, 0.5, 0.0).pred_instances.bboxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(40, 50), (150, 64), (131, 170)])
def test_labels_are_those_of_the_mean_logits_of_all_tiles_that_see_a_pixel(size):
    generator = torch.Generator().manual_seed(0)
    tiles = []

    def infer(part):
        y, x = part[0, 0, :2].astype(int)  # the image says where each pixel is
        logits = torch.randn(3, *part.shape[:2], generator=generator)
        tiles.append((y, x, logits))
        return SampleLike(seg_logits=PixelData(data=logits))

    image = np.stack([*np.indices(size), np.zeros(size)], 2).astype(np.uint8)
    labels = infer_tiles(infer, image, TILE, 0.3, 0.0).pred_sem_seg.data[0]
    total, seen = torch.zeros(3, *size), torch.zeros(size)
    for y, x, logits in tiles:
        total[:, y : y + logits.shape[1], x : x + logits.shape[2]] += logits
        seen[y : y + logits.shape[1], x : x + logits.shape[2]] += 1
    assert seen.min() >= 1 and torch.equal(labels, (total / seen).argmax(0))


def test_tiles_that_make_no_sense_are_refused():
    model = MMPredictor.__new__(MMPredictor)
    for options in ({"tile": 8}, {"tile": 64, "overlap": 1.0}, {"tile": 64, "overlap": -0.1}):
        with pytest.raises(UserError, match="expected a tile of at least 32 pixels and 0 <= overlap < 1"):
            list(model.stream([], **options))

    class Classifier(Predictor):
        def _predict(self, *_):
            raise AssertionError

        to_rgb = _predict

    with pytest.raises(UserError, match="a classifier looks at whole images"):
        Classifier(torch.nn.Identity(), []).predict([], tile=64)
