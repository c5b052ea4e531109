"""The script that regenerates golden data, and the list of these data."""

import re

import numpy as np
import pytest

from golden import DATA
from internimage.errors import UserError
from tools import golden_data


def test_the_operators_golden_file_is_regenerated():
    assert golden_data.largest_difference("op_cases", golden_data.operator_outputs()) < 1e-5


def test_a_golden_model_is_regenerated_and_a_difference_or_another_shape_is_found():
    arrays = golden_data.model_outputs("mini_flash_64")
    assert golden_data.largest_difference("mini_flash_64", arrays) < golden_data.TOLERANCE
    changed = {"logits": arrays["logits"] + np.eye(*arrays["logits"].shape)}
    assert golden_data.largest_difference("mini_flash_64", changed) > golden_data.TOLERANCE
    with pytest.raises(UserError, match=r"mini_flash_64\.npz holds other arrays or shapes"):
        golden_data.largest_difference("mini_flash_64", {"logits": arrays["logits"][:1]})


def test_the_list_of_golden_data_names_every_file():
    listed = re.findall(r"`([\w.]+\.(?:npz|json|json\.gz))`", (DATA / "README.md").read_text())
    assert set(listed) == {path.name for path in DATA.iterdir()} - {"README.md"}
