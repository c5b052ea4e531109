"""nuScenes (Caesar et al., 2020) for mmdet3d: write its index files (`nuscenes_infos_{train,val}.pkl`).

    python detection/datasets/nuscenes.py data/nuscenes
    python detection/datasets/nuscenes.py data/tiny_nuscenes --version v1.0-mini

The files are those of mmdet3d's `create_data.py nuscenes`, made by its converter, without the database of lidar
points, which cameras do not need. Importing this module lets mmdet3d's metric run without a GPU.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import internimage.mm  # noqa: F401 - isort: skip - before mmcv.ops
import torch
from PIL import Image

from internimage.errors import ArgumentParser, UserError, exit_on_user_error

__all__ = ["main", "repair_metric", "write_infos"]

_VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")


def repair_metric() -> bool:
    """Let `NuScenesMetric` run without a GPU, to which it moves its boxes. Return whether mmdet3d is installed."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        from mmdet3d.evaluation.metrics import nuscenes_metric as module
    except ImportError:
        return False
    finally:
        Image.MAX_IMAGE_PIXELS = limit  # the devkit, imported with it, would let decompression bombs through
    if not torch.cuda.is_available():
        on_cpu = patch.object(torch.Tensor, "cuda", torch.Tensor.cpu)
        module.nusc_box_to_cam_box3d = on_cpu(module.nusc_box_to_cam_box3d)
    return True


def write_infos(root: Path, version: str = "v1.0-trainval") -> None:
    """Write the index files of the nuScenes data set below `root` there.

    Raises:
        UserError: mmdet3d or the devkit is missing, or a table of the data set.
    """
    try:
        import mmdet3d
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise UserError(f"{error}; see 'Install' in docs/autonomous_driving.md") from error
    if not (root / version).is_dir():
        raise UserError(f"{root / version} does not exist; expected the folder of nuScenes' tables")
    converters = Path(mmdet3d.__file__).parent / ".mim/tools/dataset_converters"
    try:
        runpy.run_path(str(converters / "nuscenes_converter.py"))["create_nuscenes_infos"](
            str(root), "nuscenes", version=version
        )
    except (FileNotFoundError, AssertionError) as error:
        raise UserError(f"{root} is not a complete nuScenes {version}: {error}") from error
    update = runpy.run_path(str(converters / "update_infos_to_v2.py"))["update_pkl_infos"]
    tables = NuScenes(version=version, dataroot=str(root))
    update.__globals__["NuScenes"] = lambda **_: tables  # it looks for them below ./data/nuscenes, for each part anew
    for part in ("test",) if version == "v1.0-test" else ("train", "val"):
        update("nuscenes", out_dir=str(root), pkl_path=str(root / f"nuscenes_infos_{part}.pkl"))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="nuScenes' folder, with samples/ and a folder of tables")
    parser.add_argument("--version", choices=_VERSIONS, default=_VERSIONS[0])
    args = parser.parse_args(argv)
    write_infos(args.root, args.version)


repair_metric()
if __name__ == "__main__":
    main()
