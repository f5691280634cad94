"""Face networks: against stored numbers, against the original networks, on real photographs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nphm_track.conventions import BLENDSHAPE_NAMES, EYE_CORNERS_478
from nphm_track.errors import InputError, ModelError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import crop_points_to_frame, crop_rois, roi_from_landmarks
from nphm_track.models import read_weights, write_weights

GOLDEN = Path(__file__).with_name("golden.npz")


def photo(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(next((folder / "photos").glob(f"{name}_*"))).convert("RGB"))


def test_stored_numbers(landmarker, astronaut):
    golden = np.load(GOLDEN)
    (detection,) = landmarker.detect(astronaut)
    np.testing.assert_allclose(detection.box, golden["box"], atol=0.05)
    np.testing.assert_allclose(detection.keypoints, golden["keypoints"], atol=0.05)
    assert detection.score == pytest.approx(float(golden["score"]), abs=1e-3)
    (face,) = landmarker.observe(astronaut, golden["roi"][None])
    np.testing.assert_allclose(face.landmarks, golden["landmarks"], atol=0.02)
    np.testing.assert_allclose(face.blendshapes, golden["blendshapes"], atol=2e-3)
    assert face.presence > 0.99


def test_types_and_sides(landmarker, astronaut):
    (face,) = landmarker.find(astronaut)
    assert face.landmarks.shape == (478, 3) and face.landmarks.dtype == np.float32
    assert face.blendshapes.shape == (len(BLENDSHAPE_NAMES),)
    assert 0 <= face.blendshapes.min() <= face.blendshapes.max() <= 1
    scores = dict(zip(BLENDSHAPE_NAMES, face.blendshapes, strict=True))
    assert min(scores["mouthSmileLeft"], scores["mouthSmileRight"]) > 0.5
    points = face.landmarks[:, :2]
    right, left = points[list(EYE_CORNERS_478[:2])], points[list(EYE_CORNERS_478[2:])]
    assert right[0, 0] < left[0, 0]
    assert np.linalg.norm(points[468] - right.mean(0)) < np.linalg.norm(points[468] - left.mean(0))
    assert face.landmarks[1, 2] < face.landmarks[454, 2], "the nose is nearer than the ear"


def test_blink_is_the_faces_own_left(landmarker, astronaut):
    (face,) = landmarker.find(astronaut)
    closed = face.landmarks[:, :2].copy()
    upper, lower = [386, 385, 387, 384, 388, 398, 466], [374, 380, 373, 381, 390, 382, 249]
    closed[upper] = closed[lower]
    change = landmarker.blendshape_net(torch.from_numpy(closed)[None])[0].numpy() - face.blendshapes
    assert BLENDSHAPE_NAMES[int(change.argmax())] == "eyeBlinkLeft"


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2])
def test_crop_and_points_agree(angle):
    """A spot drawn in a frame lies in the crop where the inverse map says, with pixel centres at 0.5."""
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[140:144, 220:224] = 255  # centre (222, 142)
    roi = np.array([210, 150, 128, 128, angle], np.float32)
    crop = crop_rois([frame], roi[None])[0, 0].numpy()
    y, x = np.nonzero(crop > 0.5)
    spot = np.array([[[x.mean() + 0.5, y.mean() + 0.5, 0]]])
    np.testing.assert_allclose(crop_points_to_frame(spot, roi[None])[0, 0, :2], [222, 142], atol=0.1)


def test_crop_shrinks_without_aliasing():
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    crop = crop_rois([noise], np.array([[512, 512, 1000, 1000, 0]], np.float32))
    assert crop.std() < 1.05 / 3 * noise.std() / 255 and crop.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("where", [(-400, 50), (5, 5), (399, 299)])
def test_crop_beyond_the_frame_repeats_the_edge(where):
    frame = np.full((300, 400, 3), 77, np.uint8)
    crop = crop_rois([frame], np.array([[*where, 90, 90, 0.3]], np.float32))
    torch.testing.assert_close(crop, torch.full_like(crop, 77 / 255))


def test_landmarks_turn_with_the_picture(landmarker, astronaut):
    """A quarter turn of the image turns the landmarks: the roi rule follows the eyes."""
    (face,) = landmarker.find(astronaut)
    turned = np.ascontiguousarray(np.rot90(astronaut))  # (x, y) -> (y, W - x)
    points = face.landmarks[:, [1, 0, 2]] * [1, -1, 1] + [0, 512, 0]
    (again,) = landmarker.observe(turned, roi_from_landmarks(points)[None])
    error = np.linalg.norm(again.landmarks[:, :2] - points[:, :2], axis=1)
    assert error.mean() < 1.0 and again.presence > 0.99


def test_batch_equals_single(landmarker, astronaut):
    (face,) = landmarker.find(astronaut)
    rois = face.next_roi + np.array([[0, 0, 0, 0, 0], [3, -2, 9, 9, 0.1]], np.float32)
    both = landmarker.observe(astronaut, rois)
    for roi, batched in zip(rois, both, strict=True):
        (alone,) = landmarker.observe(astronaut, roi[None])
        np.testing.assert_allclose(batched.landmarks, alone.landmarks, atol=1e-3)
        np.testing.assert_allclose(batched.blendshapes, alone.blendshapes, atol=1e-4)
    assert landmarker.observe(astronaut, np.zeros((0, 5))) == []


def test_features(landmarker, astronaut):
    out = landmarker.landmark_net(crop_rois([astronaut], np.array([[224, 110, 180, 180, 0]], np.float32)), True)
    shapes = {key: tuple(value.shape[1:]) for key, value in out.items() if key.startswith("features")}
    widths = {128: 16, 64: 32, 32: 64, 16: 128, 8: 128, 4: 128}
    assert shapes == {f"features_{n}": (c, n, n) for n, c in widths.items()}


def test_small_off_centre_face_is_found(landmarker, astronaut):
    frame = np.full((720, 1280, 3), 110, np.uint8)
    frame[560:688, 1100:1228] = np.asarray(Image.fromarray(astronaut[:256, 96:352]).resize((128, 128)))
    assert not landmarker.detect(frame, thorough=False)
    (face,) = landmarker.find(frame)
    assert np.abs(face.landmarks[:, :2].mean(0) - [1164, 615]).max() < 20


def test_unusable_images(landmarker):
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            landmarker.detect(image)


def test_damaged_model(tmp_path):
    tensors, config = read_weights("face_landmarker")
    write_weights(tmp_path / "other.safetensors", tensors, {**config, "architecture": "other"})
    write_weights(tmp_path / "part.safetensors", dict(list(tensors.items())[5:]), config)
    for name in ("other.safetensors", "part.safetensors", "absent.safetensors"):
        with pytest.raises(ModelError):
            FaceLandmarker.from_pretrained(tmp_path / name)


@pytest.mark.parametrize(("name", "faces"), [("p01", 1), ("p02", 5), ("p07", 2), ("p08", 1), ("p10", 0), ("p14", 0)])
def test_photographs(landmarker, shared_data, name, faces):
    assert len(landmarker.find(photo(shared_data, name))) == faces


def interpreter(task: zipfile.ZipFile, name: str):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    net = litert.Interpreter(model_content=task.read(f"{name}.tflite"), num_threads=1)
    net.allocate_tensors()

    def run(x: np.ndarray) -> list[np.ndarray]:
        net.set_tensor(net.get_input_details()[0]["index"], x)
        net.invoke()
        return [net.get_tensor(out["index"]) for out in sorted(net.get_output_details(), key=lambda out: out["name"])]

    return run


def test_parity_with_the_original_networks(landmarker, shared_data):
    """Set NPHM_TRACK_FACE_TASK to the path of face_landmarker.task to run this."""
    path = os.environ.get("NPHM_TRACK_FACE_TASK", "")
    if not Path(path).is_file():
        pytest.skip("NPHM_TRACK_FACE_TASK names no file")
    with zipfile.ZipFile(path) as task:
        landmarks, blendshapes = interpreter(task, "face_landmarks_detector"), interpreter(task, "face_blendshapes")
    worst = 0.0
    for name in ("p01", "p02", "p05", "p06", "p07", "p11", "p13"):
        image = photo(shared_data, name)
        for face in landmarker.find(image):
            crop = crop_rois([image], face.roi[None]).permute(0, 2, 3, 1).contiguous().numpy()
            points, presence, _ = landmarks(crop)
            expected = crop_points_to_frame(points.reshape(1, 478, 3), face.roi[None].astype(np.float64))[0]
            worst = max(worst, float(np.linalg.norm(face.landmarks[:, :2] - expected[:, :2], axis=1).mean()))
            assert face.presence == pytest.approx(float(1 / (1 + np.exp(-presence.item()))), abs=1e-4)
            (scores,) = blendshapes(np.ascontiguousarray(expected[None, landmarker.blendshape_net.points.numpy(), :2]))
            np.testing.assert_allclose(face.blendshapes, scores, atol=2e-3)
    assert worst < 0.1, f"mean landmark difference {worst} px"


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_faces_are_found_whichever_way_up(landmarker, astronaut, turns):
    (upright,) = landmarker.find(astronaut)
    (turned,) = landmarker.find(np.ascontiguousarray(np.rot90(astronaut, turns)))
    x, y = upright.landmarks[:, 0], upright.landmarks[:, 1]
    side = len(astronaut)
    expected = {1: (y, side - x), 2: (side - x, side - y), 3: (side - y, x)}[turns]
    distance = np.linalg.norm(turned.landmarks[:, :2] - np.stack(expected, -1), axis=-1)
    assert distance.mean() < 0.03 * np.linalg.norm(upright.landmarks[33] - upright.landmarks[263])


def test_a_face_that_hangs_is_not_taken_for_an_upright_one(landmarker, astronaut):
    """The detector sees the chin as a forehead, too, with a lower score."""
    (best, *_) = landmarker.detect(np.ascontiguousarray(astronaut[::-1, ::-1]))
    right, left = best.keypoints[:2]
    assert right[0] > left[0]  # the face's own right eye is on the picture's right
