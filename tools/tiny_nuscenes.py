"""Make a data set of a few frames in nuScenes' format, to try a 3D detector without downloading nuScenes.

    python tools/tiny_nuscenes.py data/tiny_nuscenes
    python detection/datasets/nuscenes.py data/tiny_nuscenes --version v1.0-mini

Coloured blocks of the sizes of cars, trucks, pedestrians and cones stand around a vehicle with nuScenes' six cameras.
The tables are those of https://www.nuscenes.org/nuscenes#data-format (version v1.0-mini, a training and a validation
scene). The lidar files are empty; the pictures are drawn.
"""

import argparse
import json
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from pyquaternion import Quaternion

_SIZE = (1600, 900)  # pixels; mmdet3d's converter cuts boxes at these borders
_CAMERAS = {"FRONT": 0, "FRONT_RIGHT": -55, "BACK_RIGHT": -110, "BACK": 180, "BACK_LEFT": 110, "FRONT_LEFT": 55}
_SCENES = {"scene-0061": "train", "scene-0103": "val"}  # of the devkit's splits mini_train and mini_val
# Width, length, height in metres, attribute, colour of each category.
_CATEGORIES = {
    "vehicle.car": ((1.9, 4.6, 1.7), "vehicle.parked", (200, 60, 60)),
    "vehicle.truck": ((2.5, 7.0, 2.8), "vehicle.stopped", (60, 120, 210)),
    "human.pedestrian.adult": ((0.7, 0.7, 1.8), "pedestrian.standing", (230, 180, 40)),
    "movable_object.trafficcone": ((0.4, 0.4, 1.0), "", (240, 110, 20)),
}
_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
_UPRIGHT = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))  # from a camera's axes to the vehicle's
_INTRINSIC = np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]])


def _draw(objects: list[dict], position: np.ndarray, turn: Quaternion) -> np.ndarray:
    """The picture `(900, 1600, 3)`, BGR, of a camera at a `position` of the world."""
    picture = np.full((_SIZE[1], _SIZE[0], 3), (210, 190, 170), np.uint8)
    picture[_SIZE[1] // 2 :] = (110, 115, 120)
    away = lambda item: -np.linalg.norm(np.subtract(item["translation"], position))  # noqa: E731
    for item in sorted(objects, key=away):
        width, length, height = item["size"]
        half = np.array([length, width, height]) / 2
        corners = np.array([half * (x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        corners = corners @ Quaternion(item["rotation"]).rotation_matrix.T + item["translation"] - position
        corners = corners @ turn.rotation_matrix  # the inverse rotation
        if corners[:, 2].min() < 0.5:
            continue
        points = corners @ _INTRINSIC.T
        points = points[:, :2] / points[:, 2:]
        faces = sorted(_FACES, key=lambda face: -corners[list(face), 2].mean())
        for shade, face in zip((0.4, 0.5, 0.6, 0.75, 0.9, 1.0), faces):
            colour = tuple(shade * value for value in item["colour"][::-1])
            cv2.fillConvexPoly(picture, points[list(face)].round().astype(np.int32), colour, cv2.LINE_AA)
    return picture


def make_tiny_nuscenes(root: Path, frames: int = 2, seed: int = 0) -> None:
    """Write two scenes of `frames` key frames each below `root`: tables, pictures and empty lidar files."""
    random, number = np.random.default_rng(seed), count()
    token = lambda: f"{next(number):032x}"  # noqa: E731
    tables = {name: [] for name in ("ego_pose", "instance", "sample", "sample_annotation", "sample_data", "scene")}

    def add(table: str, **fields: object) -> dict:
        tables.setdefault(table, []).append({"token": token(), **fields})
        return tables[table][-1]

    attributes = {name: add("attribute", name=name, description="")["token"] for _, name, _ in _CATEGORIES.values()}
    categories = {name: add("category", name=name, description="")["token"] for name in _CATEGORIES}
    add("visibility", level="v80-100", description="")["token"] = "4"  # mmdet3d's converter asks for the real token
    log = add("log", logfile="drawn", vehicle="drawn", date_captured="2026-01-01", location="singapore-onenorth")
    add("map", category="semantic_prior", filename="maps/drawn.png", log_tokens=[log["token"]])
    (root / "maps").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "maps/drawn.png"), np.zeros((8, 8), np.uint8))
    sensors = []
    for name, degrees in {"LIDAR_TOP": 0, **{f"CAM_{name}": yaw for name, yaw in _CAMERAS.items()}}.items():
        lidar = name == "LIDAR_TOP"
        sensor = add("sensor", channel=name, modality="lidar" if lidar else "camera")
        turn = Quaternion(axis=(0, 0, 1), degrees=degrees) * (Quaternion() if lidar else _UPRIGHT)
        place = np.array([0.9, 0.0, 1.8]) if lidar else turn.rotate(np.array([0, 0, 0.7])) + (0.9, 0.0, 1.5)
        intrinsic = [] if lidar else _INTRINSIC.tolist()
        pose = {"translation": place.tolist(), "rotation": turn.elements.tolist(), "camera_intrinsic": intrinsic}
        sensors.append((name, turn, place, add("calibrated_sensor", sensor_token=sensor["token"], **pose)["token"]))

    for at, name in enumerate(_SCENES):
        scene = add("scene", log_token=log["token"], nbr_samples=frames, name=name, description="drawn blocks")
        objects = []
        for angle in np.linspace(0, 2 * np.pi, 18, endpoint=False):
            category = list(_CATEGORIES)[random.integers(len(_CATEGORIES))]
            size, attribute, colour = _CATEGORIES[category]
            away = random.uniform(9, 22)
            objects.append(
                {
                    "translation": [away * np.cos(angle), away * np.sin(angle), size[2] / 2],
                    "size": list(size),
                    "rotation": Quaternion(axis=(0, 0, 1), radians=random.uniform(-np.pi, np.pi)).elements.tolist(),
                    "attribute_tokens": [attributes[attribute]] if attribute else [],
                    "instance": add("instance", category_token=categories[category], nbr_annotations=frames),
                    "colour": colour,
                }
            )
        samples = [add("sample", scene_token=scene["token"], timestamp=(at * 100 + i) * 500_000) for i in range(frames)]
        _link(samples)
        scene.update(first_sample_token=samples[0]["token"], last_sample_token=samples[-1]["token"])
        data = {name: [] for name, *_ in sensors}
        annotations = [[] for _ in objects]
        for frame, sample in enumerate(samples):
            position = np.array([1.5 * frame, 0.0, 0.0])
            pose = add("ego_pose", timestamp=sample["timestamp"], rotation=[1.0, 0, 0, 0], translation=list(position))
            for name, turn, place, calibrated in sensors:
                ending = "pcd.bin" if name == "LIDAR_TOP" else "jpg"
                file = f"samples/{name}/{scene['name']}__{name}__{frame}.{ending}"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                if name == "LIDAR_TOP":
                    (root / file).write_bytes(b"")
                else:
                    cv2.imwrite(str(root / file), _draw(objects, position + place, turn))
                fields = {"ego_pose_token": pose["token"], "calibrated_sensor_token": calibrated, "filename": file}
                fields |= {"timestamp": sample["timestamp"], "is_key_frame": True, "fileformat": ending.split(".")[0]}
                fields |= dict(zip(("width", "height"), (0, 0) if name == "LIDAR_TOP" else _SIZE))
                data[name].append(add("sample_data", sample_token=sample["token"], **fields))
            for item, seen in zip(objects, annotations):
                fields = {key: item[key] for key in ("translation", "size", "rotation", "attribute_tokens")}
                fields |= {"instance_token": item["instance"]["token"], "visibility_token": "4"}
                fields |= {"num_lidar_pts": 20, "num_radar_pts": 5}
                seen.append(add("sample_annotation", sample_token=sample["token"], **fields))
        for records in (*data.values(), *annotations):
            _link(records)
        for item, seen in zip(objects, annotations):
            item["instance"].update(first_annotation_token=seen[0]["token"], last_annotation_token=seen[-1]["token"])
    folder = root / "v1.0-mini"
    folder.mkdir(exist_ok=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records))


def _link(records: list[dict]) -> None:
    """Name the record before and after each one, as nuScenes' tables do."""
    for i, record in enumerate(records):
        record["prev"] = records[i - 1]["token"] if i else ""
        record["next"] = records[i + 1]["token"] if i + 1 < len(records) else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=int, default=2, help="key frames of each of the two scenes")
    args = parser.parse_args()
    make_tiny_nuscenes(args.output, args.frames)
    print(
        f"wrote {args.output}/v1.0-mini; next: python detection/datasets/nuscenes.py {args.output} --version v1.0-mini"
    )
