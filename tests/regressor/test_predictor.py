from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.faces.roi import mirrored
from nphm_track.heads.editing import CodeMirror
from nphm_track.heads.loading import load_head_model
from nphm_track.regressor.predictor import CodePredictor


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut()[:300, :448])


def test_four_looks_see_in_a_mirrored_image_the_mirrored_head(image: np.ndarray) -> None:
    landmarker = FaceLandmarker.from_pretrained()
    face = landmarker.find(image)[0]
    mirror = CodeMirror(load_head_model())
    once = CodePredictor.from_pretrained(landmarker)
    again = CodePredictor.from_pretrained(landmarker, mirror=mirror)
    flipped = np.ascontiguousarray(image[:, ::-1])
    twin = landmarker.observe(flipped, mirrored(face.next_roi[None], [image.shape[1]]))[0]
    assert twin.presence > 0.9

    def asymmetry(predictor: CodePredictor) -> float:
        codes, other = predictor([image], [face]), predictor([flipped], [twin])
        z_id, _ = mirror(other.z_id, other.z_ex)
        return float((z_id - codes.z_id).norm() / codes.z_id.norm())

    assert asymmetry(again) < 0.5 * asymmetry(once)
    assert torch.equal(again([image], [face]).log_variance, once([image], [face]).log_variance)


def test_looks_that_find_no_face_do_not_count(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    landmarker = FaceLandmarker.from_pretrained()
    faces = landmarker.find(image)[:1]
    once = CodePredictor.from_pretrained(landmarker)([image], faces)
    observe = landmarker.observe_batch

    def lost(*args: np.ndarray) -> list[FaceObservation]:
        return [replace(face, presence=0.0) for face in observe(*args)]  # type: ignore[arg-type]

    monkeypatch.setattr(landmarker, "observe_batch", lost)
    codes = CodePredictor.from_pretrained(landmarker, mirror=CodeMirror(load_head_model()))([image], faces)
    assert torch.equal(codes.z_id, once.z_id)
    assert torch.equal(codes.z_ex, once.z_ex)
