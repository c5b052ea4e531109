"""Train, evaluate or time an InternImage classifier with Hugging Face Accelerate and DeepSpeed.

    accelerate launch --config_file classification/configs/accelerate/dist_8gpus_zero3_offload.yaml \\
        classification/train_accelerate.py --cfg classification/configs/internimage_h_22kto1k_640.yaml \\
        --data-path data/imagenet --batch-size 16 --accumulation-steps 4

The options are those of train.py. See docs/large_models.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from classification.config import amp_dtype, get_config, parse_args
from classification.train import build_strategy, run
from classification.trainer.accelerate import join
from classification.trainer.deepspeed import DeepSpeedStrategy
from internimage.errors import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    config, world, accelerator = join(get_config(parse_args(argv)))
    if accelerator.distributed_type == "DEEPSPEED":
        run(config, world, lambda *_: DeepSpeedStrategy(accelerator, world, amp_dtype(config, world.device)))
    else:
        run(config, world, build_strategy)


if __name__ == "__main__":
    main()
