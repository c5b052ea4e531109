"""Settings of the whole suite."""

import os

# One thread each: the suite itself runs in several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Tests that build the package build its CPU kernels; those of CUDA have tests of their own.
    os.environ.setdefault("OPS_DCNV3_NO_CUDA", "1")
