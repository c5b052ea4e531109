"""The demo: a small InternImage learns the embedded Fashion-MNIST subset (`python -m classification.demo`)."""
