"""A small classifier, and its folder in the layout of the released repositories."""

import json
from pathlib import Path

import pytest
from released_folder import SMALL, build, write_released
from torch import nn


@pytest.fixture(scope="session")
def small() -> nn.Module:
    return build(**SMALL, num_classes=1000)


@pytest.fixture(scope="session")
def released(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small`."""
    folder = write_released(tmp_path_factory.mktemp("hub") / "internimage_s_1k_224", small.state_dict(), **SMALL)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                **{"image_processor_type": "CLIPImageProcessor", "crop_size": 64, "size": 64, "resample": 3},
                **{"do_resize": True, "do_center_crop": True, "do_normalize": True, "do_rescale": True},
                **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True},
            }
        )
    )
    return folder
