"""Convert the folder of a sharded checkpoint to the plain `.pth` file that any number of processes reads.

    python tools/dcp_to_pth.py output/RUN/ckpt_epoch_299 [ckpt_epoch_299.pth]

The folder is one of `--sharded-checkpoint`, or of DeepSpeed (any ZeRO stage): then the file has its fp32 weights only,
and DeepSpeed unpickles the folder, so convert only those that you trust. It needs as much memory as the file has bytes,
and neither a GPU nor a process group.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from classification.trainer.dcp import read, verify  # noqa: E402 - after the path
from internimage.checkpoint import save_atomic  # noqa: E402
from internimage.errors import ArgumentParser, UserError, exit_on_user_error  # noqa: E402


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="the sharded checkpoint")
    parser.add_argument("file", type=Path, nargs="?", help="defaults to the folder's name with .pth, beside it")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise UserError(f"{args.folder} is not a folder; give a checkpoint that --sharded-checkpoint wrote")
    folder = args.folder.resolve()
    file = args.file or folder.with_name(f"{folder.name}.pth")
    if any(folder.glob("*_optim_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        checkpoint = {"model": get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)}
    else:
        verify(folder)
        checkpoint = read(folder)
    save_atomic(checkpoint, file)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
