"""Names mean mmdet's here, whichever tests ran before in the same process."""

import pytest
from mmengine.registry import init_default_scope

import internimage.mm  # noqa: F401 - registers the models
from quick_mmengine import make_quick

make_quick()


@pytest.fixture(scope="module", autouse=True)
def mmdet_scope() -> None:
    init_default_scope("mmdet")
