from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.heads.editing import CodeMirror
from nphm_track.heads.loading import load_head_model
from nphm_track.regressor.predictor import CodePredictor


def test_two_looks_see_in_a_mirrored_image_the_mirrored_head() -> None:
    data = pytest.importorskip("skimage.data")
    image = np.ascontiguousarray(data.astronaut()[:300, :448])
    landmarker = FaceLandmarker.from_pretrained()
    face = landmarker.find(image)[0]
    mirror = CodeMirror(load_head_model())
    once = CodePredictor.from_pretrained(landmarker)
    twice = CodePredictor.from_pretrained(landmarker, mirror=mirror)
    flipped, twins = once._mirrored([image], [face])
    assert twins[0].presence > 0.9

    def asymmetry(predictor: CodePredictor) -> float:
        codes, other = predictor([image], [face]), predictor(flipped, twins)
        z_id, _ = mirror(other.z_id, other.z_ex)
        return float((z_id - codes.z_id).norm() / codes.z_id.norm())

    assert asymmetry(twice) < 0.5 * asymmetry(once)
    assert torch.equal(twice([image], [face]).log_variance, once([image], [face]).log_variance)
