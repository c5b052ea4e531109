"""The released models as data: what was published about each (`zoo_data.tsv`), and what this code measures.

Rows follow the model zoos of the original projects, InternImage (60) and FlashInternImage (24), in their order.
"""

import csv
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXPLAINED_GFLOPS", "MEASURED", "PUBLISHED_MPARAMS", "Release", "releases"]

# Parameters and FLOPs (by the published convention, at the resolution in the name), from `internimage.flops`.
MEASURED: dict[str, tuple[int, int]] = {
    "internimage_t_1k_224": (29_918_424, 4_885_100_544),
    "internimage_s_1k_224": (50_079_880, 8_305_966_080),
    "internimage_b_1k_224": (97_461_832, 16_182_426_624),
    "internimage_l_22kto1k_384": (223_334_810, 107_791_887_360),
    "internimage_xl_22kto1k_384": (334_819_780, 162_929_534_976),
    "internimage_h_22kto1k_384": (1_089_636_760, 537_432_832_000),
    "internimage_h_22kto1k_640": (1_089_636_760, 1_492_864_350_208),
    "internimage_g_22kto1k_512": (3_076_373_352, 2_711_091_656_704),
    "internimage_l_22k_192to384": (263_370_371, 107_831_902_080),
    "internimage_xl_22k_192to384": (382_858_285, 162_977_552_640),
    "internimage_h_jointto22k_384": (1_105_663_489, 537_448_837_888),
    "internimage_g_pretrainto22k_384": (3_092_400_081, 1_525_006_201_600),
    "internimage_h_22ktoinat18_384": (1_096_197_516, 537_439_376_064),
    "flash_intern_image_t_1k_224": (29_815_528, 4_868_442_112),
    "flash_intern_image_s_1k_224": (50_067_496, 8_313_241_600),
    "flash_intern_image_b_1k_224": (97_448_960, 16_198_232_064),
    "flash_intern_image_l_22kto1k_384": (223_297_080, 107_821_378_560),
}

# Published in millions, with the precision of the original tables and logs.
PUBLISHED_MPARAMS: dict[str, str] = {
    "internimage_t_1k_224": "29.9",
    "internimage_s_1k_224": "50.1",
    "internimage_b_1k_224": "97.5",
    "internimage_l_22kto1k_384": "223.3",
    "internimage_xl_22kto1k_384": "334.8",
    "internimage_h_22kto1k_640": "1089.6",
    "internimage_g_22kto1k_512": "3076.4",
    "flash_intern_image_t_1k_224": "30",
    "flash_intern_image_s_1k_224": "50",
    "flash_intern_image_b_1k_224": "97",
    "flash_intern_image_l_22kto1k_384": "223",
}

# Where the same convention that reproduces T to XL exactly does not give the published figure (1478 and 2700).
EXPLAINED_GFLOPS: dict[str, str] = {"internimage_h_22kto1k_640": "1493", "internimage_g_22kto1k_512": "2711"}


@dataclass(frozen=True)
class Release:
    """One row of the model zoo.

    Attributes:
        task: classification, detection or segmentation.
        section: of the original model zoo.
        facts: published, column to value.
        config: path in this repository, or empty.
        checkpoint: path of the weights on the Hugging Face host, or empty.
        hugging_face: the model's repository for transformers, or empty.
        log: path of the training log on the host, or empty.
    """

    task: str
    section: str
    facts: dict[str, str]
    config: str
    checkpoint: str
    hugging_face: str
    log: str

    @property
    def name(self) -> str:
        """The model's name: that of its checkpoint, else of its config; empty if it has neither."""
        stem = Path(self.checkpoint or self.config).stem
        return stem.replace("flash_internimage", "flash_intern_image") if self.task == "classification" else stem

    def url(self, path: str) -> str:
        """Address of `checkpoint`, `hugging_face` or `log`; `HF_ENDPOINT` may name a mirror."""
        return f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{path}"


@functools.cache
def releases() -> tuple[Release, ...]:
    """All released models, in the order of the original model zoos."""
    with open(Path(__file__).with_name("zoo_data.tsv"), encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple(Release(**{**row, "facts": json.loads(row["facts"])}) for row in rows)
