"""ImageNet-style classification with InternImage: configuration, data, training, evaluation and export."""
