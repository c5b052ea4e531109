"""What a model computes at each level for one image: receptive field, components of the features, class activation."""

from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import InternImage
from ..errors import UserError
from ..meta_former import logits_of_images

__all__ = ["effective_receptive_field", "grad_cam", "principal_components"]


def effective_receptive_field(backbone: InternImage, image: Tensor, directions: int = 4) -> list[Tensor]:
    """For each level `(H, W)`: how strongly its middle pixel depends on each pixel of the input `(1, in_chans, H, W)`.

    Absolute gradients, summed over colours (Luo et al., 2016, Understanding the Effective Receptive Field in Deep
    Convolutional Neural Networks), averaged over `directions` random combinations of the output's channels with signs
    +1 and -1. Their plain sum would have no gradient after a LayerNorm.
    """
    x, generator = image.detach().clone().requires_grad_(), torch.Generator().manual_seed(0)
    fields = []
    for feature in backbone.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True):
        center = feature[0, feature.shape[1] // 2, feature.shape[2] // 2]
        signs = torch.randint(0, 2, (directions, len(center)), generator=generator).to(center) * 2 - 1
        gradients = [torch.autograd.grad(center @ row, x, retain_graph=True)[0][0] for row in signs]
        fields.append(torch.stack(gradients).abs().mean(0).sum(0))
    return fields


def principal_components(feature: Tensor) -> tuple[Tensor, float]:
    """The first three principal components of a map `(H', W', C)`, and their share of the variance.

    The components, `(H', W', 3)`, have values 0 to 1, from their 1st to their 99th percentile.
    """
    pixels = feature.float().flatten(0, 1)
    pixels = pixels - pixels.mean(0)
    _, deviations, axes = torch.linalg.svd(pixels, full_matrices=False)
    scores = pixels @ axes[:3].T * axes[:3].sum(1).sign()  # without the sign, it would be arbitrary
    low, high = scores.quantile(torch.tensor([0.01, 0.99]).to(scores), dim=0)
    colors = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    variances = deviations.square()
    colors = F.pad(colors, (0, 3 - colors.shape[1]))  # one or two pixels have fewer components
    return colors.unflatten(0, feature.shape[:2]), float(variances[:3].sum() / variances.sum().clamp(min=1e-12))


def grad_cam(model: InternImage, image: Tensor, label: int) -> list[Tensor]:
    """Grad-CAM (Selvaraju et al., 2017) of a class at each level, `(H', W')`, by captum, for `(1, in_chans, H, W)`.

    Raises:
        UserError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise UserError("it needs captum; run pip install 'internimage[visualize]'") from None
    taps = [nn.Identity() for _ in model.levels]  # see the outputs in captum's layout, (N, C, H', W')
    with ExitStack() as hooks:
        for level, tap in zip(model.levels, taps):
            through = lambda level, args, y, tap=tap: tap(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # noqa: E731
            hooks.enter_context(level.register_forward_hook(through))
        cams = [LayerGradCam(partial(logits_of_images, model), tap) for tap in taps]
        return [cam.attribute(image, label, relu_attributions=True)[0, 0].detach() for cam in cams]
