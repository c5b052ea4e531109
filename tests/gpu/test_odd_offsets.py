"""Points that do not count: NaN, infinite, far outside, and exactly on the border at -1 or H."""

import pytest
import torch
from gpu_cases import DTYPES, PLAIN, TOLERANCE, assert_close, draw, dtype_id, operator, reference

WEIGHTS = PLAIN._replace(mask_is_logits=False)
SIZE = (2, 9, 7)
# (row, column) of output pixels, of which the point in the middle of the window is displaced in one group.
PIXELS = [(0, 0), (3, 2), (8, 6)]
MIDDLE = 4


def displaced(inputs, where):
    """Copies of `inputs` with the middle points of PIXELS at `where(row, column)` as (x, y) offsets, in group 1."""
    offset = inputs.offset.clone()
    points = offset.view(*offset.shape[:3], 2, 9, 2)
    for row, column in PIXELS:
        points[:, row, column, 1, MIDDLE] = torch.tensor(where(row, column), dtype=offset.dtype, device=offset.device)
    return inputs._replace(offset=offset)


def without(inputs):
    """The same with the weights of those points zero."""
    mask = inputs.mask.clone()
    for row, column in PIXELS:
        mask.view(*mask.shape[:3], 2, 9)[:, row, column, 1, MIDDLE] = 0
    return inputs._replace(mask=mask)


OUTSIDE = {
    "not a number": lambda row, column: (float("nan"), float("nan")),
    "column not a number": lambda row, column: (float("nan"), 0.5),
    "row not a number": lambda row, column: (0.5, float("nan")),
    "infinite": lambda row, column: (float("inf"), float("-inf")),
    "infinite in one axis": lambda row, column: (0.0, float("inf")),
    "the largest float16": lambda row, column: (65504.0, -65504.0),
    "at row -1": lambda row, column: (0.5, -1 - row),
    "at row H": lambda row, column: (0.5, SIZE[1] - row),
    "at column -1": lambda row, column: (-1 - column, 0.5),
    "at column W": lambda row, column: (SIZE[2] - column, 0.5),
}


@pytest.mark.parametrize("where", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_a_point_outside_counts_as_one_of_weight_zero(dtype, where):
    inputs = draw(WEIGHTS, SIZE, dtype=dtype)
    results = operator(displaced(inputs, where), WEIGHTS)
    expected = [tensor.clone() for tensor in reference(without(inputs), WEIGHTS)]
    for row, column in PIXELS:  # it gets no gradient for its weight; a weight of zero gives the offset none
        expected[3].view(*expected[3].shape[:3], 2, 9)[:, row, column, 1, MIDDLE] = 0
    assert_close(results, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("where", [(float("nan"), 0.5), (0.5, float("inf"))], ids=["column", "row"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_a_point_that_is_not_finite_keeps_its_share_of_the_softmax(dtype, where):
    inputs = draw(PLAIN, SIZE, dtype=dtype)
    results = operator(displaced(inputs, lambda row, column: where), PLAIN)
    far = displaced(inputs, lambda row, column: (1000.0, 1000.0))
    assert_close(results, reference(far, PLAIN), TOLERANCE[dtype])


@pytest.mark.parametrize("index", [0, 2], ids=["input", "mask"])
def test_nan_values_and_weights_reach_the_pixels_that_sample_them(index):
    inputs = draw(WEIGHTS, SIZE)
    inputs[index][0, 4, 3] = float("nan")
    output = operator(inputs, WEIGHTS)[0]
    assert output[0].isnan().any() and not output[1].isnan().any()
