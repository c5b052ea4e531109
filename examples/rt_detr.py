"""Train transformers' RT-DETR with an InternImage on data in COCO's format (docs/transformers.md).

    python examples/rt_detr.py --data data/composites --size 96 --small --learning_rate 1e-3 --output_dir output/rt_detr
    python examples/rt_detr.py --data MY_DATA --backbone OpenGVLab/internimage_t_1k_224 --layer_decay 0.9

The folder holds annotations/{train,val}.json and images/{train,val}/. Further options are those of TrainingArguments.
"""

import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from PIL import ImageOps
from pycocotools.cocoeval import COCOeval
from torchvision.datasets import CocoDetection
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

from internimage.hf import InternImageBackbone, InternImageConfig
from internimage.optim import param_groups


@dataclass
class Arguments:
    data: str = field(metadata={"help": "folder of the data set"})
    backbone: str | None = field(default=None, metadata={"help": "pretrained model; without, a nano of random weights"})
    small: bool = field(default=False, metadata={"help": "few channels, layers and queries, for small images"})
    size: int = field(default=640, metadata={"help": "height and width of the model's images"})
    layer_decay: float = field(default=1.0, metadata={"help": "learning rate of a block, relative to the next"})


class CocoFolder(CocoDetection):
    """One split, as the model takes it: `pixel_values` and, in `labels`, classes and relative boxes."""

    def __init__(self, folder: str, split: str, processor: RTDetrImageProcessor, flip: bool) -> None:
        super().__init__(Path(folder, "images", split), Path(folder, "annotations", f"{split}.json"))
        self.processor, self.flip = processor, flip
        self.categories = sorted(self.coco.cats)  # COCO's ids may have gaps; the model's labels do not

    def __getitem__(self, index: int) -> dict:
        image, objects = super().__getitem__(index)
        objects = [{**object, "category_id": self.categories.index(object["category_id"])} for object in objects]
        if self.flip and random.random() < 0.5:
            image = ImageOps.mirror(image)
            for object in objects:
                left, top, width, height = object["bbox"]
                object["bbox"] = [image.width - left - width, top, width, height]
        annotations = {"image_id": self.ids[index], "annotations": objects}
        inputs = self.processor(image, annotations=annotations, return_tensors="pt")
        return {name: inputs[name][0] for name in ("pixel_values", "labels")}


def collate(items: list[dict]) -> dict:
    pixels = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": pixels, "labels": [item["labels"] for item in items]}


def average_precision(data: CocoFolder, evaluation: transformers.EvalPrediction) -> dict[str, float]:
    """COCO's metric. For each batch there is a pair of logits and boxes, and a list of labels."""
    found = []
    for (logits, boxes), labels in zip(evaluation.predictions, evaluation.label_ids):
        outputs = SimpleNamespace(logits=torch.tensor(logits), pred_boxes=torch.tensor(boxes))
        sizes = [label["orig_size"].tolist() for label in labels]
        results = data.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        for label, result in zip(labels, results):
            result["boxes"][:, 2:] -= result["boxes"][:, :2]
            for score, index, box in zip(*(result[name].tolist() for name in ("scores", "labels", "boxes"))):
                image = int(label["image_id"][0])
                found.append(dict(image_id=image, category_id=data.categories[index], bbox=box, score=score))
    coco = COCOeval(data.coco, data.coco.loadRes(found), "bbox")
    coco.evaluate(), coco.accumulate(), coco.summarize()
    return {"AP": coco.stats[0], "AP50": coco.stats[1]}


def build(pretrained: str | None, small: bool, names: list[str]) -> RTDetrForObjectDetection:
    stages, values = ["stage2", "stage3", "stage4"], {}  # strides 8, 16, 32
    if pretrained:
        backbone = InternImageBackbone.from_pretrained(pretrained, out_features=stages)
    else:
        nano = dict(channels=32, depths=[1, 1, 3, 1], groups=[2, 4, 8, 16])
        backbone = InternImageBackbone(InternImageConfig(**nano, out_features=stages))
    if small:
        values = dict(d_model=64, encoder_hidden_dim=64, decoder_in_channels=[64] * 3, decoder_layers=2)
        values |= dict(encoder_ffn_dim=128, decoder_ffn_dim=128, hidden_expansion=0.5, num_queries=30)
        values |= dict(encoder_attention_heads=4, decoder_attention_heads=4, num_denoising=20)
        values |= dict(weight_loss_vfl=4.0, focal_loss_gamma=1.0)  # faster at first on the demo's composites
    values |= dict(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    config = RTDetrConfig(backbone_config=backbone.config, encoder_in_channels=backbone.channels, **values)
    model = RTDetrForObjectDetection(config)
    model.model.backbone.model = backbone  # RT-DETR built one with random weights
    return model


def parameter_groups(model: RTDetrForObjectDetection, rate: float, weight_decay: float, layer_decay: float) -> list:
    backbone = model.model.backbone.model.model
    groups = param_groups(backbone, base_lr=rate, weight_decay=weight_decay, layer_decay=layer_decay)
    inside = {parameter for group in groups for parameter in group["params"]}
    for group in groups:
        del group["initial_lr"]  # PyTorch's schedulers would start all groups at this rate
    rest = [parameter for parameter in model.parameters() if parameter not in inside]
    return [*groups, {"params": rest, "lr": rate, "weight_decay": weight_decay}]


def main(argv: list[str] | None = None) -> None:
    parser = transformers.HfArgumentParser((Arguments, transformers.TrainingArguments))
    parser.set_defaults(per_device_train_batch_size=16, num_train_epochs=8, learning_rate=1e-4, weight_decay=0.01)
    parser.set_defaults(lr_scheduler_type="cosine", warmup_steps=100, eval_strategy="epoch", save_strategy="epoch")
    # Keep the labels, and do not join those of different images: they have different numbers of objects.
    parser.set_defaults(remove_unused_columns=False, eval_do_concat_batches=False)
    arguments, training = parser.parse_args_into_dataclasses(argv)
    if not Path(arguments.data, "annotations", "train.json").is_file():
        parser.error(f"{arguments.data} has no annotations/train.json; python -m demo.compose makes an example")
    size = {"height": arguments.size, "width": arguments.size}
    processor = RTDetrImageProcessor(size=size, do_normalize=True)  # RT-DETR's own weights take images as they are
    data = {name: CocoFolder(arguments.data, name, processor, flip=name == "train") for name in ("train", "val")}
    train = data["train"]
    names = [train.coco.cats[category]["name"] for category in train.categories]
    model = build(arguments.backbone, arguments.small, names)
    groups = parameter_groups(model, training.learning_rate, training.weight_decay, arguments.layer_decay)
    trainer = transformers.Trainer(
        model,
        training,
        collate,
        train_dataset=train,
        eval_dataset=data["val"],
        processing_class=processor,
        compute_metrics=partial(average_precision, data["val"]),
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[1:3],  # logits and boxes; other outputs are large
        optimizers=(torch.optim.AdamW(groups), None),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
