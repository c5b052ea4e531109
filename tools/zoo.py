"""Write the tables of the model zoo into README and docs, and check them against the models.

    python tools/zoo.py            fill the tables between the markers in README*.md and docs/model_zoo.md
    python tools/zoo.py --check    change nothing: are the tables current, and the parameters and FLOPs of the
                                   classifiers those in the tables? (rebuilds every classifier, about two minutes)

A table stands between `<!-- zoo: TASK -->` (all rows), or `<!-- zoo: TASK short -->` (the rows of `SHORT`), and
`<!-- zoo: end -->`. The rows are those of `internimage/zoo/releases.tsv`.
"""

import argparse
import os
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
import torch

from internimage import create_model
from internimage.errors import UserError, exit_on_user_error
from internimage.flops import count_flops, count_parameters
from internimage.zoo import Release, releases

__all__ = ["check_classifiers", "fill", "full_tables", "measure", "short_table"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README_zh-CN.md", "docs/model_zoo.md")

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

# Published accuracy and rows of the short tables.
SHORT = {
    "classification": (
        "acc@1",
        "ImageNet-1K top-1",
        [
            *("internimage_t_1k_224", "internimage_s_1k_224", "internimage_b_1k_224", "internimage_l_22kto1k_384"),
            *("internimage_xl_22kto1k_384", "internimage_h_22kto1k_640", "internimage_g_22kto1k_512"),
        ],
    ),
    "detection": (
        "box mAP",
        "COCO box mAP",
        [
            *(f"mask_rcnn_internimage_{size}_fpn_3x_coco" for size in "tsb"),
            *(f"cascade_internimage_{size}_fpn_3x_coco" for size in ("l", "xl")),
            "dino_4scale_internimage_h_objects365_coco",
            "dino_4scale_cbinternimage_h_objects365_coco",
        ],
    ),
    "segmentation": (
        "mIoU (ss/ms)",
        "ADE20K mIoU (single / multi-scale)",
        [
            *(f"upernet_internimage_{size}_512_160k_ade20k" for size in "tsb"),
            *(f"upernet_internimage_{size}_640_160k_ade20k" for size in ("l", "xl")),
            "upernet_internimage_h_896_160k_ade20k",
            "mask2former_internimage_h_896_80k_cocostuff2ade20k",
        ],
    ),
}

NOTES = {
    "ImageNet-1K Image Classification": """\
Measured columns: `python tools/zoo.py --check`. FLOPs follow the published convention (multiply-adds of convolutions
and linear layers, 5 per sampled point and channel of the operator). It gives the published figures of T to XL, and 1.0%
and 0.4% more than published for H and G.""",
    "Open-Source Visual Pretrained Models": """\
The published #param count a head of 1000 classes, the measured ones the released head of 21841 classes.""",
    "COCO": "TTA: test-time augmentation, in the configurations that end in `_ms`.",
    "Cityscapes": r"\* uses extra data: the model was first trained on Mapillary.",
}


def _link(text: str, target: str) -> str:
    return f"[{text}]({target})" if target else ""


def _weights(release: Release) -> str:
    files = [("ckpt", release.checkpoint), ("HF", release.hugging_face), ("log", release.log)]
    return " \\| ".join(_link(text, release.url(path)) for text, path in files if path)


def _configs(release: Release, folder: Path) -> str:
    """Links to the row's configurations from a page in `folder`."""
    paths = release.config.split()
    if absent := [path for path in paths if not (ROOT / path).is_file()]:
        raise UserError(f"releases.tsv names {absent[0]}, which does not exist; correct the column config")
    common = os.path.commonprefix([Path(path).stem for path in paths])
    names = ["config"] if len(paths) == 1 else [Path(path).stem.removeprefix(common) for path in paths]
    return " \\| ".join(_link(name, os.path.relpath(ROOT / path, folder)) for name, path in zip(names, paths))


def _table(rows: list[dict[str, str]]) -> str:
    last = ("config", "download")
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in last]
    columns += [column for column in last if any(row.get(column) for row in rows)]
    lines = [columns, [":---:"] * len(columns)] + [[row.get(column, "") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def full_tables(task: str, folder: Path) -> str:
    """The Markdown tables of one task, one per section, for a page in `folder`."""
    parts = []
    chosen = [release for release in releases() if release.task == task]
    for section in dict.fromkeys(release.section for release in chosen):
        rows = []
        for release in chosen:
            if release.section != section:
                continue
            row = {key: value.replace("*", r"\*") for key, value in release.facts.items()}
            if release.name in MEASURED:
                parameters, flops = MEASURED[release.name]
                row["#param measured"] = f"{parameters / 1e6:.1f}M"
                row["FLOPs measured"] = f"{flops / 1e9:.{1 if flops < 2e10 else 0}f}G"
            rows.append({**row, "config": _configs(release, folder), "download": _weights(release)})
        parts += [f"### {section}", _table(rows), *filter(None, [NOTES.get(section)])]
    return "\n\n".join(parts)


def short_table(task: str, folder: Path) -> str:
    """The Markdown table of the best-known models of one task, for a page in `folder`."""
    fact, title, names = SHORT[task]
    known = {release.name: release for release in reversed(releases())}
    rows = []
    for release in (known[name] for name in names):
        method, size = release.facts.get("method", ""), release.facts.get("resolution") or release.facts["schd"]
        backbone = release.facts.get("name") or release.facts["backbone"]
        rows.append(
            {
                "name": f"{method} {backbone}, {size}".strip(),
                title: release.facts[fact],
                "parameters": release.facts["#param"],
                "weights": _link(release.name, release.url(release.checkpoint)),
                "configuration": _configs(release, folder),
            }
        )
    return _table(rows)


def fill(text: str, folder: Path) -> str:
    """Return the text of a page in `folder` with its tables filled."""

    def table(match: re.Match) -> str:
        build = short_table if match[2] else full_tables
        return f"{match[0].partition('-->')[0]}-->\n\n{build(match[1], folder)}\n\n<!-- zoo: end -->"

    pattern = rf"<!-- zoo: ({'|'.join(SHORT)})( short)? -->.*?<!-- zoo: end -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def measure(name: str) -> tuple[int, int]:
    """Build a released classifier on the meta device; return its parameters and FLOPs."""
    size = timm.get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"):
        model = create_model(name)
        images = torch.empty(1, 3, size, size)
        metadata = (torch.empty(1, 4), torch.empty(1, 3)) if hasattr(model, "meta_head") else ()
    return count_parameters(model), count_flops(model, images, *metadata)


def _differences(name: str, parameters: int, flops: int) -> list[str]:
    """What differs from the recorded and the published figures."""
    found = []
    if (parameters, flops) != MEASURED[name]:
        found.append(f"recorded are {MEASURED[name][0]} parameters and {MEASURED[name][1]} FLOPs")
    mparams = PUBLISHED_MPARAMS.get(name)
    if mparams and f"{parameters / 1e6:.{len(mparams.partition('.')[2])}f}" != mparams:
        found.append(f"published are {mparams} M parameters")
    published = next((release.facts.get("FLOPs") for release in releases() if release.name == name), None)
    gflops = EXPLAINED_GFLOPS.get(name) or (published or "").removesuffix("G")
    if gflops and f"{flops / 1e9:.0f}" != gflops:
        found.append(f"published are {gflops} GFLOPs")
    return found


def check_classifiers(names: list[str] | None = None) -> bool:
    """Rebuild classifiers (default: all), print their figures; return whether they are the recorded and published."""
    agree = True
    for name in names or MEASURED:
        parameters, flops = measure(name)
        found = _differences(name, parameters, flops)
        agree = agree and not found
        print(f"{name:34}{parameters / 1e6:10.1f} M parameters{flops / 1e9:10.2f} GFLOPs  {'; '.join(found)}".rstrip())
    print("all agree" if agree else "some differ")
    return agree


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and change nothing")
    args = parser.parse_args(argv)
    pages = [ROOT / page for page in PAGES if (ROOT / page).is_file()]
    stale = [page for page in pages if fill(page.read_text(), page.parent) != page.read_text()]
    for page in stale:
        print(f"{'not current' if args.check else 'filled'}: {page.relative_to(ROOT)}")
        if not args.check:
            page.write_text(fill(page.read_text(), page.parent))
    return int(args.check and not (check_classifiers() and not stale))


if __name__ == "__main__":
    sys.exit(main())
