"""Zero-shot instance masks: the boxes of a detector are the prompts of SAM (Kirillov et al., 2023) or SAM 2.

    python detection/sam_demo.py IMAGES [CONFIG] CHECKPOINT --sam facebook/sam-vit-base

Writes what `internimage predict` writes: pictures, predictions.json with masks, predictions.csv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.mm.predictor import MMPredictor, add_model_arguments, load_model, resolve_model
from internimage.mm.runner import DETECTION
from internimage.predictions import PredictionFiles
from internimage.predictor import choose_device
from internimage.results import DetectionResult

__all__ = ["BoxPrompts", "main"]


class BoxPrompts:
    """SAM or SAM 2 by the name of its repository or by its folder. Raises `UserError` if it cannot be loaded."""

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            from transformers import AutoModelForMaskGeneration, Sam2Model, Sam2Processor, SamModel, SamProcessor
        except ImportError:
            raise UserError("sam_demo.py needs transformers 5.24; run pip install 'internimage[hf]'") from None
        try:
            self.model = AutoModelForMaskGeneration.from_pretrained(name).to(device).eval()
            kind = {SamModel: SamProcessor, Sam2Model: Sam2Processor}[type(self.model)]
            self.processor = kind.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"cannot load SAM from {name} ({reason}); give a name such as facebook/sam-vit-base"
            ) from None

    @torch.inference_mode()
    def add_masks(self, result: DetectionResult) -> None:
        """Set the masks `(n, H, W)`, bool, of the objects' boxes; masks of the detector are replaced."""
        result.masks = torch.zeros(len(result.boxes), *result.image.shape[:2], dtype=torch.bool).numpy()
        if not len(result.boxes):
            return
        inputs = self.processor(images=result.image, input_boxes=[result.boxes.tolist()], return_tensors="pt")
        inputs["input_boxes"] = inputs["input_boxes"].float()  # float64
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        shown = {key: value.to(self.model.device) for key, value in inputs.items() if value.is_floating_point()}
        masks = self.model(**shown, multimask_output=False).pred_masks.cpu()
        result.masks = self.processor.post_process_masks(masks, *sizes)[0][:, 0].numpy()


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description="Instance masks of SAM for the boxes of a detector.")
    parser.add_argument("images", help="an image, folder, pattern, video or URL")
    add_model_arguments(parser)
    help = "SAM or SAM 2 of transformers: a name or a folder; default: %(default)s"
    parser.add_argument("--sam", default="facebook/sam-vit-base", metavar="NAME", help=help)
    parser.add_argument("--output", type=Path, default=Path("predictions"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score of an object; default: %(default)s")
    parser.add_argument("--device", help="defaults to the GPU if there is one")
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    detector = MMPredictor(load_model(*resolve_model(args), device))
    if detector.task is not DETECTION:
        raise UserError(f"{args.config} has no boxes; give a detector")
    sam = BoxPrompts(args.sam, device)
    with PredictionFiles(args.output) as files:
        for result in detector.stream(args.images, threshold=args.threshold):
            sam.add_masks(result)
            print(f"{result.source}: {result.summary()}; {files.add(result)}", flush=True)


if __name__ == "__main__":
    main()
