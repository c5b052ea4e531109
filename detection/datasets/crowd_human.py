"""CrowdHuman (Shao et al., 2018): convert its annotations (.odgt, one JSON object a line) to COCO's format.

    python detection/datasets/crowd_human.py annotation_train.odgt Images annotations/annotation_train.json

People are category 1, `person`. What CrowdHuman marks as ignored (`mask` regions and some people) becomes `iscrowd`,
which is neither trained on nor counted as a miss. Full-body boxes may extend beyond the image; they are not clipped.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.images import upright_size

__all__ = ["to_coco", "write_coco"]

BOXES = {"full": "fbox", "visible": "vbox", "head": "hbox"}


def _ignored(person: dict, box: str) -> bool:
    about = person.get("head_attr" if box == "head" else "extra", {})
    return person["tag"] != "person" or about.get("ignore", 0) == 1


def to_coco(odgt: str | Path, images: str | Path, *, box: str = "full") -> dict:
    """Return COCO's dictionary for a CrowdHuman annotation file.

    Args:
        odgt: the annotation file.
        images: folder with the images, `<ID>.jpg`; their sizes are read from there.
        box: which of a person's boxes: "full" (body, as the released model detects), "visible" or "head".

    Raises:
        UserError: a file is missing, or a line is not CrowdHuman's.
    """
    odgt, images = Path(odgt), Path(images)
    if not odgt.is_file():
        raise UserError(f"no annotation file at {odgt}; give the path of CrowdHuman's annotation_*.odgt")
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number, line in enumerate(filter(str.strip, odgt.read_text().splitlines()), start=1):
        try:
            record = json.loads(line)
            name, people = f"{record['ID']}.jpg", record["gtboxes"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"line {number} of {odgt} is not CrowdHuman's format ({error!r})") from error
        if not (images / name).is_file():
            raise UserError(f"no image {name} in {images}, which line {number} of {odgt} needs; unpack all image zips")
        width, height = upright_size(images / name)
        coco["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for person in people:
            if BOXES[box] not in person:  # regions have no head
                continue
            x, y, w, h = person[BOXES[box]]
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(_ignored(person, box)),
                }
            )
    return coco


def write_coco(coco: dict, out: Path, what: str) -> None:
    """Write COCO's dictionary to a file and print how many objects, `what`, it has."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(coco))
    ignored = sum(annotation["iscrowd"] for annotation in coco["annotations"])
    objects = len(coco["annotations"]) - ignored
    print(f"{out}: {len(coco['images'])} images, {objects} {what}, {ignored} regions to ignore")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the command line and convert one file."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("odgt", help="CrowdHuman's annotation_train.odgt or annotation_val.odgt")
    parser.add_argument("images", help="folder with the images")
    parser.add_argument("out", type=Path, help="COCO file to write")
    parser.add_argument("--box", choices=BOXES, default="full", help="which box of a person; defaults to full")
    args = parser.parse_args(argv)
    write_coco(to_coco(args.odgt, args.images, box=args.box), args.out, "people")


if __name__ == "__main__":
    main()
