"""The released models: what was published about each, and their files, downloaded once."""

from .release import Release, cache_dir, checkpoint_path, local_checkpoint, releases

__all__ = ["Release", "cache_dir", "checkpoint_path", "local_checkpoint", "releases"]
