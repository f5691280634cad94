"""Google's face landmarker alone on a clip, in LiteRT on one thread, as MediaPipe runs it on video: what speed is
measured against.

``face_landmarker.task`` is Google's bundle. A frame is decoded, cut out around the last landmarks, and goes through the
landmark and blendshape networks; where no face is in the crop, the detector looks for one. Nothing is written.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.conventions import N_LANDMARKS
from nphm_track.faces.detection import decode, letterbox, suppress
from nphm_track.faces.landmarker import MIN_PRESENCE
from nphm_track.faces.roi import crop_points_to_frame, crop_rois, roi_from_detection, roi_from_landmarks
from nphm_track.models import read_weights
from nphm_track.video.reader import open_video

Network = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


def landmarks_of(task: Path, clip: Path) -> tuple[int, int]:
    """Run it over a clip: frames, and those with a face."""
    with zipfile.ZipFile(task) as bundle:
        names = ("face_detector", "face_landmarks_detector", "face_blendshapes")
        detector, landmarks, blendshapes = (_network(bundle.read(f"{name}.tflite")) for name in names)
    scored = read_weights("face_landmarker")[1]["blendshapes"]["points"]
    roi: NDArray[np.float32] | None = None
    count = faces = 0
    for frame in open_video(clip):
        count += 1
        if roi is None:
            picture, place = letterbox(frame.image, "cpu")
            logits, boxes = sorted(detector(_last(picture.numpy())), key=lambda x: x.shape[-1])
            found = suppress(decode(boxes[0], logits[0, :, 0], place))
            if not found:
                continue
            roi = np.asarray(roi_from_detection(found[0].box, found[0].keypoints), np.float32)
        raw = landmarks(_last(crop_rois([frame.image], roi[None]).numpy()))
        in_crop: np.ndarray = raw[0].reshape(1, N_LANDMARKS, 3)
        region: np.ndarray = roi[None].astype(np.float64)
        points = crop_points_to_frame(in_crop, region)[0]
        if 1 / (1 + np.exp(-float(raw[1].item()))) < MIN_PRESENCE:
            roi = None
            continue
        blendshapes(np.ascontiguousarray(points[None, scored, :2], np.float32))
        roi, faces = np.asarray(roi_from_landmarks(points), np.float32), faces + 1
    return count, faces


def _network(model: bytes) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(model_content=model, num_threads=1)
    net.allocate_tensors()
    (given,), made = net.get_input_details(), sorted(net.get_output_details(), key=lambda d: d["name"])

    def call(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        net.set_tensor(given["index"], x)
        net.invoke()
        return [net.get_tensor(d["index"]) for d in made]

    return call


def _last(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1, 3, H, W] with the channels last."""
    return np.ascontiguousarray(picture.transpose(0, 2, 3, 1))


if __name__ == "__main__":
    landmarks_of(Path(sys.argv[1]), Path(sys.argv[2]))
