"""Join a run that `accelerate launch` started, with the settings of Accelerate's YAML and DeepSpeed's JSON file."""

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from yacs.config import CfgNode

from internimage.errors import UserError

from .deepspeed import SHARDS
from .distributed import TIMEOUT, World, ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["join"]


def join(config: CfgNode) -> tuple[CfgNode, World, "Accelerator"]:
    """Join the run that `accelerate launch` started; with plain `python`, a run of one process.

    Returns:
        The configuration with what Accelerate's YAML file says (precision, FSDP) in place of its own; this process;
        and the accelerator.

    Raises:
        UserError: a library is missing, or the files of Accelerate and DeepSpeed contradict the configuration.
    """
    env = os.environ
    uses_deepspeed, uses_fsdp = (env.get(f"ACCELERATE_USE_{name}") == "true" for name in ("DEEPSPEED", "FSDP"))
    for library in ["accelerate"] + ["deepspeed"] * uses_deepspeed:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed; install it with pip install -e '.[scale]'")
    if uses_deepspeed and config.COMPILE != "off":
        raise UserError("--compile does not work with DeepSpeed; omit it")
    from accelerate import Accelerator, InitProcessGroupKwargs

    rank, size, local_rank = ranks(config.LAUNCHER, config.LOCAL_RANK)
    if size > 1 or uses_deepspeed:  # Slurm may show each task only its own GPU
        local_rank = local_rank % max(1, torch.cuda.device_count()) if "SLURM_PROCID" in env else local_rank
        env |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank)}
        env.setdefault("MASTER_ADDR", "127.0.0.1")
    # Without a GPU, Accelerate chooses no backend, unless told to.
    backend = "gloo" if "LOCAL_RANK" in env and not torch.cuda.is_available() else None
    group = InitProcessGroupKwargs(backend=backend, timeout=TIMEOUT)
    plugin = _read_deepspeed_settings(config) if uses_deepspeed else None
    env["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "1"  # the training loop does it
    try:
        accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[group])
    except ValueError as error:
        raise UserError(f"Accelerate: {str(error).splitlines()[0]}; change its configuration") from None
    world = World(accelerator.process_index, accelerator.num_processes, accelerator.device)
    torch.backends.cudnn.benchmark = True  # one image size throughout a run
    precision = accelerator.mixed_precision.replace("no", "off")
    if precision == "fp16" and world.device.type == "cpu":
        raise UserError(
            "fp16 needs a GPU; on a CPU, use Accelerate's mixed_precision no or bf16, or remove fp16 from "
            "DeepSpeed's JSON"
        )
    if config.AMP not in ("auto", precision):
        raise UserError(f"--amp {config.AMP} contradicts Accelerate's mixed_precision {precision}; omit --amp")
    config = config.clone()
    config.defrost()
    for key in ("RESUME", "PRETRAINED"):
        config.MODEL[key] = _plain_file(config.MODEL[key])
    config.AMP = precision
    config.TRAIN.OPTIMIZER.USE_ZERO = False
    config.TRAIN.SHARD = "fsdp" if uses_fsdp else "none"
    config.TRAIN.CPU_OFFLOAD = uses_fsdp and env.get("FSDP_OFFLOAD_PARAMS") == "true"
    config.TRAIN.USE_CHECKPOINT |= uses_fsdp and env.get("FSDP_ACTIVATION_CHECKPOINTING") == "true"
    config.freeze()
    return config, world, accelerator


def _plain_file(name: str) -> str:
    """The plain checkpoint of a folder of DeepSpeed's; other names are returned unchanged."""
    if not name or not any(Path(name).glob("*_optim_states.pt")):
        return name
    plain = Path(name).with_suffix(".pth")
    if Path(name).suffix != SHARDS or not plain.exists():
        raise UserError(f"{name} has only DeepSpeed's part; convert it with python tools/dcp_to_pth.py {name}")
    return str(plain)


def _read_deepspeed_settings(config: CfgNode) -> Any:
    """Accelerate's plugin for the JSON file, whose `auto` values become those of the configuration.

    Raises:
        UserError: the file is missing or invalid, or contradicts the configuration.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns
    import deepspeed.ops
    from accelerate.utils import DeepSpeedPlugin

    class Plugin(DeepSpeedPlugin):
        def set_deepspeed_weakref(self) -> None:
            """Do not import transformers, which this method would tell about ZeRO 3."""

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of names that DeepSpeed uses
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {}  # do not compile one that only shortens gloo's messages
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and not Path(file).exists():  # named from the folder of the script
        file = str(Path(__file__).parents[1] / file)
        if not Path(file).exists():
            raise UserError(f"there is no {file}, which Accelerate's deepspeed_config_file names; correct its path")
    source = file or "Accelerate's deepspeed_config"
    try:
        plugin = Plugin(hf_ds_config=file)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot use DeepSpeed's configuration {source} ({reason}); correct it") from None
    settings, batch = plugin.deepspeed_config, config.DATA.BATCH_SIZE
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    for key, value, fix in (
        ("gradient_accumulation_steps", accumulation, "--accumulation-steps"),
        ("train_micro_batch_size_per_gpu", batch, "--batch-size"),
        ("train_batch_size", batch * accumulation * processes, "--batch-size and --accumulation-steps"),
        ("gradient_clipping", float(config.TRAIN.CLIP_GRAD or 0), "TRAIN.CLIP_GRAD"),
    ):
        if settings.get(key, "auto") not in ("auto", value) and not config.EVAL_MODE:
            raise UserError(
                f"{source}: {key} is {settings[key]}, but {value} in this run; "
                f'change {fix}, or write "auto" in the file'
            )
        settings[key] = value
    zero = settings["zero_optimization"]
    offloads = {zero.get(f"offload_{part}", {}).get("device", "none") for part in ("optimizer", "param")}
    if zero.get("stage") not in (1, 2, 3) or not offloads <= {"none", "cpu"}:
        raise UserError(f"{source}: expected ZeRO stage 1, 2 or 3 and offload to cpu or none")
    # torch's fused AdamW runs on CPUs too; DeepSpeed's own would need a compiler.
    settings.setdefault("zero_force_ds_cpu_optimizer", False)
    return plugin
