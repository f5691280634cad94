from __future__ import annotations

import numpy as np
import torch

from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import CELLS, extract_canonical, fair, merge_short_edges, model_field, open_mouth_code


def test_stairs_of_marching_cubes_go_and_the_surface_stays() -> None:
    from skimage.measure import marching_cubes

    grid = np.stack(np.meshgrid(*[np.linspace(-0.06, 0.06, 41)] * 3, indexing="ij"), -1)
    values = np.round((np.linalg.norm(grid, axis=-1) - 0.05) * 500) / 500  # a ball in steps of 2 mm
    index, faces, _, _ = marching_cubes(values + 1e-5, 0.0, gradient_direction="descent")
    vertices = index * 0.003 - 0.06

    def ball(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        radius = np.linalg.norm(points, axis=1)
        return radius - 0.05, points / radius[:, None]

    smooth = fair(vertices, faces, ball)
    assert np.abs(ball(vertices)[0]).mean() > 2e-4
    assert np.abs(ball(smooth)[0]).max() < 1e-5
    lengths = [np.linalg.norm(v[faces] - v[np.roll(faces, 1, 1)], axis=-1) for v in (vertices, smooth)]
    assert lengths[1].std() / lengths[1].mean() < lengths[0].std() / lengths[0].mean()


def test_canonical_mesh_lies_on_the_zero_level() -> None:
    model = load_head_model()
    z_id = torch.zeros(model.config.identity_dim)
    opened = extract_canonical(model, z_id, detail=0.6).open_vertices
    assert opened is not None
    low, high = np.array(CELLS["face"][1]).T
    face = ((opened > low) & (opened < high)).all(1)
    distance = np.abs(model_field(model, z_id, open_mouth_code(model))(opened[face]))
    assert distance.mean() < 1e-5 and np.quantile(distance, 0.99) < 1e-4


def test_faces_back_to_back_are_removed() -> None:
    """Two corners a tenth of a millimetre apart become one, and the faces beside them a fin."""
    vertices = np.array([[0, 0, 0], [0.01, 0, 0], [0, 0.01, 0], [0, 0.0101, 0], [0.01, 0.01, 0.0]])
    faces = np.array([[0, 1, 2], [0, 3, 1], [1, 4, 3]])
    merged, left = merge_short_edges(vertices, np.concatenate([faces, [[0, 2, 3]]]))
    assert len(merged) == 4 and len(left) == 1
