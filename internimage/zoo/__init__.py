"""The released models: published facts and downloads."""

from .release import Release, cache_dir, checkpoint_path, local_checkpoint, releases

__all__ = ["Release", "cache_dir", "checkpoint_path", "local_checkpoint", "releases"]
