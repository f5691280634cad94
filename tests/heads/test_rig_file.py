"""rig.npz: a person's rig comes back as it was saved, and only as what it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import InputError
from nphm_track.heads.correctives import Correctives
from nphm_track.heads.rig import Rig
from nphm_track.heads.rig_file import PersonRig, load_rig, rig_key, save_rig
from nphm_track.heads.template import load_template
from nphm_track.heads.wrap import Eyeball

CODE = np.linspace(-1, 1, 8, dtype=np.float32)


@pytest.fixture(scope="module")
def person() -> PersonRig:
    template, rng = load_template(), np.random.default_rng(0)
    eyes = [Eyeball(rng.normal(size=3).astype(np.float32), 0.0158 + i, np.float32([0, 0, 1])) for i in range(2)]
    neutral = template.neutral + rng.normal(0, 1e-3, template.neutral.shape).astype(np.float32)
    rig = Rig(template, neutral, template.expression, (eyes[0], eyes[1]))
    frames = rng.normal(0, 1e-3, (3, 200, 3)).astype(np.float32)
    return PersonRig(rig, Correctives.none(np.arange(100, 300)).extended(frames))


@pytest.fixture(scope="module")
def saved(person: PersonRig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rig") / "rig.npz"
    save_rig(path, person, rig_key(CODE, "abc"))
    return path


def test_a_rig_comes_back_to_the_last_bit(person: PersonRig, saved: Path) -> None:
    found = load_rig(saved, person.rig.template, rig_key(CODE, "abc"))
    for name in ("neutral", "shapes"):
        np.testing.assert_array_equal(getattr(found.rig, name), getattr(person.rig, name))
    for name in ("index", "basis", "probes"):
        np.testing.assert_array_equal(getattr(found.correctives, name), getattr(person.correctives, name))
    for eye, was in zip(found.rig.eyes, person.rig.eyes, strict=True):
        assert eye.radius == was.radius
        np.testing.assert_array_equal(eye.centre, was.centre)
        np.testing.assert_array_equal(eye.axis, was.axis)


def test_the_rig_of_another_person_or_head_model_is_refused(saved: Path) -> None:
    for key in (rig_key(CODE + 1e-6, "abc"), rig_key(CODE, "abd")):
        with pytest.raises(InputError, match="another identity"):
            load_rig(saved, load_template(), key)


def test_a_damaged_rig_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    cut, flipped = tmp_path / "cut.npz", tmp_path / "flipped.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    flipped.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 64]) + whole[middle + 64 :])
    for path in (cut, flipped, tmp_path / "missing.npz"):
        with pytest.raises(InputError):
            load_rig(path, load_template())
