"""Held-out quality of the released models, as their cards state it.

    python benchmarks/models.py --ict FOLDER [--heads data/heads_heldout] [--landmarks data/landmarks_heldout]
        [--faces data/faces_heldout [--ruler 40 --fits data/photo_fits.npz]]

Image regressors are measured as trained, before identity_trust: by one look at each crop, and by the four looks that
the tracker takes at stills (CodePredictor). --ruler measures the identities of so many heads as real scans are measured
(nphm_track/evaluation/scan.py), beside one identity for everybody, the mean of photo fits. The folders are those of
``training/README.md`` with held-out seeds (900000 and above); each adds the models it is for.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import POINTS7_478
from nphm_track.evaluation.scan import NAMES7, Scan
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import mirrored, scaled
from nphm_track.geometry.networks import GeometryNet
from nphm_track.heads.editing import CodeMirror
from nphm_track.heads.loading import load_head_model
from nphm_track.models import resolve
from nphm_track.regressor.image_regressor import ImageRegressor
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.regressor.predictor import LOOKS_AGAIN
from nphm_track.training.face_stream import crop_to_frame
from nphm_track.training.geometry_task import FaceShards, GeometryData, GeometryTask, decode_crop
from nphm_track.training.head_task import HeadData, HeadTask
from nphm_track.training.ict import load_ict
from nphm_track.training.image_regressor_task import ImageRegressorData, ImageRegressorTask, encode_shards
from nphm_track.training.regressor_task import RegressorData, RegressorTask

MOST_TURNED = 28
"""Degrees that heads measured like scans may be turned: the scans' views are frontal and 25 degrees to the side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--heads", help="nphm-small")
    parser.add_argument("--landmarks", help="landmark-regressor")
    parser.add_argument("--faces", help="geometry and image-regressor; the latter as trained")
    parser.add_argument("--ruler", type=int, default=0, metavar="N", help="measure N held-out heads like scans")
    parser.add_argument("--fits", help="written by training/build_photo_fits.py, for --ruler")
    args = parser.parse_args()
    if args.ruler and not (args.faces and args.fits):
        parser.error("--ruler needs --faces and --fits")
    prepare_torch()
    torch.manual_seed(0)
    if args.heads:
        head = HeadTask(HeadData(ict=args.ict, shards=args.heads, heldout=args.heads))
        _print("nphm-small", head.evaluate(load_head_model()))
    if args.landmarks:
        data = RegressorData(ict=args.ict, head_model="nphm-small", shards=args.landmarks, heldout=args.landmarks)
        _print("landmark-regressor", RegressorTask(data).evaluate(LandmarkRegressor.from_pretrained()))
    if args.faces:
        net = GeometryNet.from_pretrained()
        _print("geometry", GeometryTask(GeometryData(shards=args.faces, heldout=args.faces)).evaluate(net))
        task = image_regressor(args.ict, args.faces, net)
        _print("image-regressor", task.evaluate(task.model.eval()))
        codes = _looked_at_again(task, Path(args.faces), net)
        _print("image-regressor, four looks", task.terms.metrics(*codes, task.heldout_table))
        if args.ruler:
            _print("image-regressor, median mm by the ruler for scans", _ruler(task, args.ruler, args.fits))


def image_regressor(ict: str, faces: str, net: GeometryNet) -> ImageRegressorTask:
    released = "image-regressor"
    names = {"ict": ict, "head_model": "nphm-small", "geometry": "geometry", "init": str(resolve(released))}
    data = ImageRegressorData(**names, shards=faces, heldout=faces)
    table = encode_shards(FaceShards(Path(faces)), net, (*data.encoders, "d"))
    return ImageRegressorTask(data, (table, table))


class OtherLook(FaceShards):
    """The same crops, mirrored or from closer, and looked at anew."""

    def __init__(self, folder: Path, flip: bool, scale: float) -> None:
        super().__init__(folder)
        self.landmarker = FaceLandmarker.from_pretrained()
        self.flip, self.scale = flip, scale

    def take(self, rows: NDArray[np.integer]) -> dict[str, Any]:
        table = super().take(rows)
        crops = _closer(torch.stack([decode_crop(j) for j in table["jpeg"]]), self.scale)
        rois = scaled(table["roi"], self.scale)
        if self.flip:
            crops, rois = crops.flip(3), mirrored(rois, table["size"][:, 0])
        table["jpeg"], roi = [_png(crop) for crop in crops], torch.from_numpy(rois)
        with torch.no_grad():
            seen = self.landmarker.landmark_net(crops.contiguous(memory_format=torch.channels_last), True)
            landmarks = crop_to_frame(seen["landmarks"], roi)
            scores = self.landmarker.blendshape_net(landmarks[..., :2] - roi[:, None, :2])
        return {**table, "roi": rois, "landmarks": landmarks.numpy(), "blendshapes": scores.numpy()}


def _closer(crops: Tensor, scale: float) -> Tensor:
    theta = torch.tensor([[[scale, 0, 0], [0, scale, 0]]]).expand(len(crops), 2, 3)
    grid = F.affine_grid(theta, list(crops.shape), align_corners=False)
    return F.grid_sample(crops, grid, align_corners=False)


def _png(crop: Tensor) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray((crop * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)


@torch.no_grad()
def _looked_at_again(task: ImageRegressorTask, folder: Path, net: GeometryNet) -> tuple[Tensor, Tensor]:
    """Codes of the held-out crops, the mean of the four looks that the tracker takes at stills."""
    seen = task._predict(task.model, task.heldout_table, None)
    z_id, z_ex = seen.z_id, seen.z_ex
    mirror = CodeMirror(load_head_model())
    for flip, scale in LOOKS_AGAIN:
        table = encode_shards(OtherLook(folder, flip, scale), net, (*task.data.encoders, "d"))
        seen = task._predict(task.model, table, None)
        back = mirror(seen.z_id, seen.z_ex) if flip else (seen.z_id, seen.z_ex)
        z_id, z_ex = z_id + back[0], z_ex + back[1]
    looks = 1 + len(LOOKS_AGAIN)
    return z_id / looks, z_ex / looks


@torch.no_grad()
def _ruler(task: ImageRegressorTask, count: int, fits: str) -> dict[str, float]:
    """Similarity-aligned medians of the first ``count`` held-out heads that face the camera."""
    heads, table = load_ict(task.data.ict), task.heldout_table
    codes = task._predict(task.model.eval(), table, None)
    regressor = ImageRegressor.from_pretrained()
    drawn = torch.lerp(regressor.identity_mean, codes.z_id, regressor.image_config.identity_trust)
    w, e = (x.numpy() for x in task.terms.weights(codes.z_id, codes.z_ex))
    trusted = task.terms.weights(drawn, codes.z_ex)[0].numpy()
    mean = np.load(fits)["w"].mean(0)
    landmark = np.load(task.data.landmarks)
    index = [POINTS7_478[name] for name in NAMES7]
    corner, bary = heads.faces[landmark["face"][index]], landmark["bary"][index][..., None]

    def mesh(w: NDArray[np.float32], e: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        vertices = heads.neutral + np.tensordot(w, heads.identity, 1) + np.tensordot(e, heads.expression, 1)
        return vertices, (vertices[corner] * bary).sum(1)

    found: dict[str, list[float]] = {}
    turned = -table["R"][:, 2, 2] < math.cos(math.radians(MOST_TURNED))
    for i in np.flatnonzero(~turned.numpy())[:count]:
        true_w, true_e = table["w"][i].numpy(), table["e"][i].numpy()
        vertices, points7 = mesh(true_w, true_e)
        scan = Scan(vertices, heads.faces, points7)
        cases = {
            "predicted": (w[i], e[i]),
            "predicted, drawn towards people's mean": (trusted[i], e[i]),
            "one identity for everybody": (mean, e[i]),
            "mean head": (0 * mean, e[i]),
            "true identity": (true_w, e[i]),
        }
        for name, weights in cases.items():
            vertices, points7 = mesh(*weights)
            found.setdefault(name, []).append(scan.error(vertices, heads.faces, points7).similarity.median)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _print(name: str, metrics: dict[str, float]) -> None:
    print(f"| {name} | |\n|---|---|")
    for key, value in metrics.items():
        print(f"| {key} | {value:.3f} |")


if __name__ == "__main__":
    main()
