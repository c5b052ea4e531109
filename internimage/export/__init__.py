"""Models for other runtimes: rewriting, writing, checking against PyTorch and timing. See docs/deploy.md."""
