"""Small copies of the detectors: the configurations as they are, with mini backbones, narrow heads and few boxes."""

from mmengine.config import Config
from tiny_layouts import moved

from mm_recipes.detection import CONFIGS

# mmdet's DINO computes with 256 channels whatever the configuration says.
NARROW = {"dino": {"feedforward_channels": 128}, "rcnn": {"fc_out_channels": 128}}
NARROW["rcnn"] |= dict.fromkeys(("in_channels", "out_channels", "feat_channels", "conv_out_channels"), 64)


def narrow(node, sizes):
    """Set these channel counts, where there is one number, in all modules below `node`."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list | tuple):
            narrow(value, sizes)
        elif key in sizes:
            node[key] = sizes[key]


def small(name, num_classes=3, root=None):
    """A configuration with a mini backbone, a short transformer and, if there is a `root`, data in that folder."""
    whole = Config.fromfile(CONFIGS / name, import_custom_modules=False).to_dict()
    shrunk = Config(moved(whole, root) if root else whole)
    model = shrunk.model
    narrow(model, NARROW["dino" if "bbox_head" in model else "rcnn"])
    depths = [1, 1, 3, 1] if model.backbone.get("level2_post_norm") else [1, 1, 1, 1]
    model.backbone.update(channels=16, depths=depths, groups=[1, 2, 4, 8], init_cfg=None, drop_path_rate=0.1)
    if "level2_post_norm_block_ids" in model.backbone:
        model.backbone.level2_post_norm_block_ids = [1, 2]
    model.neck.in_channels = [16, 32, 64, 128][-len(model.neck.in_channels) :]
    if "bbox_head" in model:
        model.bbox_head.num_classes = num_classes
        model.update(num_queries=30)
        model.encoder.num_layers = model.decoder.num_layers = 1
        model.dn_cfg.group_cfg.num_dn_queries = 10
        model.test_cfg.max_per_img = 10
    else:
        boxes = model.roi_head.bbox_head
        for head in [*(boxes if isinstance(boxes, list) else [boxes]), model.roi_head.get("mask_head")]:
            if head:
                head.update(num_classes=num_classes)
        few = dict(nms_pre=50, max_per_img=10)
        model.train_cfg.rpn_proposal.update(few)
        model.test_cfg.rpn.update(few)
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 8
    if "num_layers" in shrunk.optim_wrapper.paramwise_cfg:
        shrunk.optim_wrapper.paramwise_cfg.update(depths=depths, num_layers=sum(depths))
    return shrunk


def small_images(node):
    """Bring the sizes in all pipelines below `node` down to about 64 x 96."""
    if isinstance(node, dict):
        for key in {"scale", "scales", "crop_size"} & set(node):
            several = isinstance(node[key], list)
            node[key] = [(96, 48), (96, 64)] if several else (32, 48) if key == "crop_size" else (96, 64)
        for value in node.values():
            small_images(value)
    elif isinstance(node, list):
        for value in node:
            small_images(value)
