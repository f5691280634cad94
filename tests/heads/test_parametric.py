"""Public head models from the user's file: read without running anything, posed, laid on a head, followed."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import ModelError
from nphm_track.heads import parametric_fit
from nphm_track.heads.parametric import ParametricHead, read_flame, read_gnm
from nphm_track.heads.parametric_fit import Person, fit_person, fit_pose
from nphm_track.heads.template import Template, load_template

sys.path.insert(0, str(Path(__file__).parent))
from made_up_flame import EXPRESSIONS, SHAPES, SHIFT, layout, write_flame, write_gnm

IDENTITY = np.array([1, -1.5, 0.5, 1, -0.5, 0.8])


@pytest.fixture(scope="module", autouse=True)
def few_points() -> Iterator[None]:
    """A quarter of the points, which takes a quarter of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parametric_fit, "POINTS", 500)
        yield


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, template: Template) -> tuple[Path, Path]:
    return write_flame(tmp_path_factory.mktemp("models"), template)


@pytest.fixture(scope="module")
def flame(files: tuple[Path, Path]) -> ParametricHead:
    return read_flame(files[0])


@pytest.fixture(scope="module")
def neutral(template: Template) -> np.ndarray:
    weights = np.zeros(len(template.identity))
    weights[:SHAPES] = IDENTITY
    return template.person(weights)


@pytest.fixture(scope="module")
def person(flame: ParametricHead, template: Template, neutral: np.ndarray) -> Person:
    return fit_person(flame, template, neutral)


def test_pickles_say_what_arrays_say(files: tuple[Path, Path], flame: ParametricHead) -> None:
    other = read_flame(files[1])
    for name in ("template", "shape", "expression", "joints", "weights", "faces"):
        np.testing.assert_allclose(getattr(other, name), getattr(flame, name), atol=1e-12)
    assert flame.parents == (-1, 0, 1, 1, 1)


def test_chumpy_is_read_without_chumpy(tmp_path: Path, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ch:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    modules = {name: type(sys)(name) for name in ("chumpy", "chumpy.ch")}
    modules["chumpy.ch"].Ch = Ch
    arrays = layout(template)
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        stored = pickle.dumps(arrays | {"v_template": Ch(arrays["v_template"])}, protocol=2)
    (tmp_path / "m.pkl").write_bytes(stored)
    np.testing.assert_array_equal(read_flame(tmp_path / "m.pkl").template, arrays["v_template"])


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"v_template": Trap()}, protocol=protocol))
    with pytest.raises(ModelError, match=r"is not a FLAME model \(it holds .*, and is not opened\)"):
        read_flame(tmp_path / "m.pkl")
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_models(tmp_path: Path, files: tuple[Path, Path]) -> None:
    (tmp_path / "m.pkl").write_bytes(b"garbage")
    np.savez(tmp_path / "empty.npz", x=np.zeros(3))
    for name, read in (("m.pkl", read_flame), ("empty.npz", read_flame), ("empty.npz", read_gnm), ("none", read_gnm)):
        with pytest.raises(ModelError):
            read(tmp_path / name)
    with pytest.raises(ModelError, match="template_vertex_positions is missing"):
        read_gnm(files[0])


def test_joints_turn_what_hangs_on_them(flame: ParametricHead) -> None:
    turns = np.zeros((5, 3))
    still = flame.posed(np.zeros(300), np.zeros(len(EXPRESSIONS)), turns)
    np.testing.assert_allclose(still, flame.template, atol=1e-9)
    turns[2] = [0.2, 0, 0]
    moved = flame.posed(np.zeros(300), np.zeros(len(EXPRESSIONS)), turns) - still
    jaw = flame.weights[:, 2]
    assert np.abs(moved[jaw == 0]).max() < 1e-12 and moved[jaw > 0.99, 1].max() < -0.005  # chins go down


def test_identity_and_place_are_found(person: Person) -> None:
    np.testing.assert_allclose(person.shape[:SHAPES], IDENTITY, atol=0.1)
    assert np.abs(person.shape[SHAPES:]).max() < 1e-6
    np.testing.assert_allclose(person.t, -SHIFT, atol=2e-4)
    assert person.unit == 1 and person.residual_mm < 0.1 and person.weight.mean() > 0.9


def test_expression_jaw_and_eyes_of_a_frame(person: Person, template: Template, neutral: np.ndarray) -> None:
    names, moves = template.expression_names, template.expression
    head = neutral + 0.6 * moves[names.index("mouthSmile_L")]
    gaze = np.array([[0.3, 0, 0.954], [np.nan] * 3])
    smile = fit_pose(person, head, gaze)
    expected = np.where(np.array(EXPRESSIONS) == "mouthSmile_L", 2.0, 0)  # the model's shapes are 0.3 of the template's
    np.testing.assert_allclose(smile.expression, expected, atol=0.1)
    assert smile.residual_mm < 0.1 and np.linalg.norm(smile.turns[2]) < 0.01
    np.testing.assert_allclose(smile.turns[3], [0, np.arcsin(0.3), 0], atol=0.01)
    assert not smile.turns[4].any()
    opened = fit_pose(person, neutral + 0.6 * moves[names.index("jawOpen")], start=smile)
    assert 0.1 < opened.turns[2, 0] < 0.3 and opened.residual_mm < 1.5


def test_gnm_without_a_jaw_in_another_unit(tmp_path: Path, template: Template, neutral: np.ndarray) -> None:
    model = read_gnm(write_gnm(tmp_path, template))
    person = fit_person(model, template, neutral)
    assert person.unit == 0.01
    np.testing.assert_allclose(person.shape, IDENTITY, atol=0.1)
    head = neutral + 0.6 * template.expression[template.expression_names.index("mouthSmile_L")]
    smile = fit_pose(person, head)
    assert smile.expression[1] == pytest.approx(2, abs=0.1) and smile.residual_mm < 0.1
