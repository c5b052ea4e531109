"""Tensors of models that FSDP2 spreads over several processes: from the whole to a process's part, and back."""

from typing import Any

from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["gather_whole", "own_part"]


def own_part(whole: Any, own: Any) -> Any:
    """This process's part of a whole tensor, spread like the tensor `own` of the same shape; other values unchanged.

    Every process must have the whole tensor: nothing is sent.
    """
    if not isinstance(own, DTensor) or isinstance(whole, DTensor) or getattr(whole, "shape", None) != own.shape:
        return whole
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def gather_whole(part: DTensor, keep: bool) -> Any:
    """The whole tensor, on the CPU, of which all processes have parts; None if this one does not `keep` it.

    All processes must call this function.
    """
    whole = part.full_tensor()
    return whole.cpu() if keep else None
