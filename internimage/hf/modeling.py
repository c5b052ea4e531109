"""InternImage as transformers' models: features, classifier, backbone. Each wraps the one `InternImage`."""

import os
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers import modeling_outputs as out
from transformers.backbone_utils import BackboneMixin
from transformers.utils.generic import can_return_tuple

from ops_dcnv3 import DCNv3, DCNv4

from ..heads import CrossAttention
from ..layers import Block
from .configuration import InternImageConfig, copy_nothing

__all__ = ["InternImageBackbone", "InternImageForImageClassification", "InternImageModel"]


class InternImagePreTrainedModel(PreTrainedModel):
    """What the models share: `self.model` is the `InternImage`, so state-dict keys are the released ones."""

    register_for_auto_class = copy_nothing
    config: InternImageConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _arguments = {}

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.model = config.build(**self._arguments)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: in custom code transformers does not initialise modules without parameters of their own, as DCNv3."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        # As InternImage does; transformers' functions, and torch's while this runs, leave loaded weights alone.
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (DCNv3, DCNv4, nn.Conv2d)):
            module.reset_parameters()
        elif isinstance(module, Block) and module.layer_scale:
            init.constant_(module.gamma1, self.config.layer_scale)
            init.constant_(module.gamma2, self.config.layer_scale)
        elif isinstance(module, CrossAttention):
            for bias in (module.q_bias, module.k_bias, module.v_bias):
                init.zeros_(bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            super()._init_weights(module)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass; `activation_checkpointing_enable` sets it."""
        return any(block.with_cp for level in self.model.levels for block in level.blocks)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.model.set_grad_checkpointing(enable)

    def _maps(self, pixel_values: Tensor, wanted: bool | None) -> tuple[list[Tensor], tuple | None]:
        """The maps of `config.stage_names`, `(N, C, H, W)`; and again as hidden states, if these are wanted."""
        maps = self.model._level_features(pixel_values, with_stem=True)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        return maps, tuple(maps) if wanted else None

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs) -> object:
        # Before this call transformers wrote the repository's card, or an empty form if it has none.
        card = Path(working_dir, "README.md")
        if "has been automatically generated" in card.read_text(encoding="utf-8"):
            card.write_text(self.config.model_card(), encoding="utf-8")
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class InternImageModel(InternImagePreTrainedModel):
    """`InternImage` without the classifier's last layer."""

    _arguments = {"num_classes": 0}
    _keys_to_ignore_on_load_unexpected = [r"^model\.head\."]

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> out.BaseModelOutputWithPoolingAndNoAttention:
        """Images `(N, in_chans, H, W)` to the last level `(N, C, H/32, W/32)` and a classifier's input `(N, F)`."""
        maps, hidden_states = self._maps(pixel_values, output_hidden_states)
        pooled = self.model.forward_head(self.model._pre_head(maps))
        return out.BaseModelOutputWithPoolingAndNoAttention(maps[-1], pooled, hidden_states)


class InternImageForImageClassification(InternImagePreTrainedModel):
    """`InternImage` with its classifier of `config.num_labels` classes."""

    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool | None = None, **kwargs
    ) -> out.ImageClassifierOutputWithNoAttention:
        """Images `(N, in_chans, H, W)` to `logits` `(N, num_labels)`.

        With `labels` also to their `loss`: cross entropy of `(N,)` integers, or by `config.problem_type`.
        """
        maps, hidden_states = self._maps(pixel_values, output_hidden_states)
        logits, loss = self.model.forward_head(self.model._pre_head(maps)), None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return out.ImageClassifierOutputWithNoAttention(loss, logits, hidden_states)


class InternImageBackbone(BackboneMixin, InternImagePreTrainedModel):
    """`InternImage` for transformers' detectors and segmentors: the maps of `config.out_features`."""

    has_attentions = False
    _arguments = {"features_only": True}
    _keys_to_ignore_on_load_unexpected = [r"^model\.(head|conv_head|dcnv3_head_x[34]|clip_projector|fc_norm)\."]

    def __init__(self, config: InternImageConfig) -> None:
        super().__init__(config)
        self.num_features = [config.channels, *self.model.feature_info.channels()]

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> out.BackboneOutput:
        """Images `(N, in_chans, H, W)` to `feature_maps`, one `(N, C, H, W)` for each of `config.out_features`."""
        maps, hidden_states = self._maps(pixel_values, output_hidden_states)
        chosen = tuple(map_ for name, map_ in zip(self.stage_names, maps) if name in self.out_features)
        return out.BackboneOutput(chosen, hidden_states)
