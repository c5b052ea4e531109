"""Names mean mmseg's here, whichever tests ran before in the same process."""

import pytest
from mmengine.registry import init_default_scope

import internimage.mm  # noqa: F401 - registers the models
from quick_mmengine import make_quick

make_quick()


@pytest.fixture(scope="module", autouse=True)
def mmseg_scope() -> None:
    from mmseg.visualization import SegLocalVisualizer

    init_default_scope("mmseg")
    SegLocalVisualizer._instance_dict.clear()  # one of the same name, without TensorBoard, would be taken again
