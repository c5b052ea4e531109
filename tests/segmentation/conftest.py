"""Names mean mmseg's here, whichever tests ran before in the same process."""

import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import internimage.mm  # noqa: F401 - registers the models

Runner._log_env = lambda *_: None  # takes longer than the trainings here


@pytest.fixture(scope="module", autouse=True)
def mmseg_scope() -> None:
    from mmseg.visualization import SegLocalVisualizer

    init_default_scope("mmseg")
    SegLocalVisualizer._instance_dict.clear()  # one of the same name, without TensorBoard, would be taken again
