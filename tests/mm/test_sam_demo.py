"""`detection/sam_demo.py` as in docs/detection.md: a tiny detector and tiny SAMs with random weights."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_coco
import torch
from mmengine.registry import MODELS, init_default_scope
from pycocotools import mask as coco_mask

from detection import sam_demo
from internimage.mm.checks import read_config
from internimage.results import DetectionResult

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")
PAGE = Path(__file__).parents[2] / "docs" / "detection.md"
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "mlp_dim": 16,
    "num_hidden_layers": 1,
    "iou_head_hidden_dim": 16,
}


def tiny_sam():
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 4, "mlp_dim": 16}
    vision |= {"image_size": 64, "patch_size": 8, "output_channels": 16, "global_attn_indexes": [0]}
    vision["num_pos_feats"] = 8
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    sizes |= {"mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    return SamModel(config), SamProcessor(SamImageProcessor(**sizes))


def tiny_sam2():
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64]}
    backbone |= {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]}
    backbone |= {"num_attention_heads_per_stage": [1, 1, 2, 2], "global_attention_blocks": [3]}
    vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32}
    vision["backbone_feature_sizes"] = [[16, 16], [8, 8], [4, 4]]
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=DECODER | {"hidden_size": 32}
    )
    size = {"height": 64, "width": 64}
    return Sam2Model(config), Sam2Processor(Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders `sam` and `sam2`, a checkpoint and an image."""
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    for name, build in (("sam", tiny_sam), ("sam2", tiny_sam2)):
        for part in build():
            part.save_pretrained(folder / name)
    data = tiny_coco.make_data(folder / "data")
    config = tiny_coco.make_config(folder, data)
    init_default_scope("mmdet")
    torch.save({"state_dict": MODELS.build(read_config(str(config)).model).state_dict()}, folder / "random.pth")
    return folder


def commands():
    text = re.search(r"## Boxes as prompts.*?```bash\n(.*?)```", PAGE.read_text(), re.S)[1]
    return [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("index", [0, 1], ids=["sam", "sam2"])
def test_the_pages_command_writes_a_mask_for_each_box(index, folder, tmp_path, capsys):
    _, script, _, *rest = commands()[index]
    assert script == "detection/sam_demo.py"
    sam = rest[rest.index("--sam") + 1] if "--sam" in rest else "facebook/sam-vit-base"
    place = str(folder / ("sam2" if "sam2" in sam else "sam"))
    argv = [str(folder / "data/images/0.png"), "--checkpoint", str(folder / "random.pth")]
    argv += ["--config", str(folder / "mask_rcnn.py"), "--sam", place, "--device", "cpu"]
    sam_demo.main([*argv, "--output", str(tmp_path), "--threshold", "0.05"])
    (entry,) = json.loads((tmp_path / "predictions.json").read_text())
    assert (tmp_path / entry["picture"]).is_file() and len(entry["objects"]) > 0
    for item in entry["objects"]:
        assert item["mask"]["size"] == [64, 96]
        assert coco_mask.decode(coco_mask.frPyObjects(item["mask"], 64, 96)).shape == (64, 96)
    assert f"{len(entry['objects'])} objects" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_masks_are_those_of_transformers_own_call_with_one_box(name, folder):
    prompts = sam_demo.BoxPrompts(str(folder / name), torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    boxes = np.array([[4, 6, 30, 40], [50, 2, 79, 20]], np.float32)
    result = DetectionResult(image, "image", boxes, np.ones(2), np.zeros(2, int), ["a", "a"])
    prompts.add_masks(result)
    assert result.masks.shape == (2, 48, 80) and result.masks.dtype == bool
    pipeline = prompts.processor
    for box, mask in zip(boxes, result.masks):
        inputs = pipeline(images=image, input_boxes=[[box.tolist()]], return_tensors="pt")
        more = [inputs["reshaped_input_sizes"]] if name == "sam" else []
        given = {key: inputs[key].float() for key in ("pixel_values", "input_boxes")}
        with torch.no_grad():
            found = prompts.model(**given, multimask_output=False).pred_masks
        expected = pipeline.post_process_masks(found, inputs["original_sizes"], *more)[0][0, 0]
        assert (torch.from_numpy(mask) == expected).float().mean() > 0.99  # the sums have another order
    none = DetectionResult(image, "image", boxes[:0], np.ones(0), np.zeros(0, int), [])
    prompts.add_masks(none)
    assert none.masks.shape == (0, 48, 80)


def test_a_folder_without_sam_is_one_line(folder, capsys):
    argv = [str(folder / "data/images/0.png"), "--checkpoint", str(folder / "random.pth")]
    with pytest.raises(SystemExit) as stop:
        sam_demo.main([*argv, "--config", str(folder / "mask_rcnn.py"), "--sam", str(folder / "data")])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"cannot load SAM from {folder / 'data'}" in lines[0]
