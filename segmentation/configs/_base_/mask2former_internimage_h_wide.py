"""Mask2Former with InternImage-H, 1024 wide with 200 queries; a configuration adds the classes."""

_base_ = "./mask2former_internimage_h.py"

wide_encoding = dict(num_feats=512, normalize=True)
attention = dict(embed_dims=1024, num_heads=32)
feed_forward = dict(embed_dims=1024, feedforward_channels=4096)
model = dict(
    decode_head=dict(
        feat_channels=1024,
        out_channels=1024,
        num_queries=200,
        pixel_decoder=dict(
            encoder=dict(layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward)),
            positional_encoding=wide_encoding,
        ),
        positional_encoding=wide_encoding,
        transformer_decoder=dict(
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
        ),
    )
)
