"""From pictures to packets: settling on a person, and the command with a file played at its own pace."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import numpy as np
import pytest

from nphm_track import cli
from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.heads.loading import load_head_model
from nphm_track.live.session import Meter
from nphm_track.live.tracker import FEWEST, SETTLE_S, LiveTracker
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.video.source import Frame
from tests.live.conftest import FRAMES, portrait
from tests.live.packets import read_live_link, read_osc


@pytest.fixture(scope="module")
def make() -> Callable[..., LiveTracker]:
    landmarker = FaceLandmarker.from_pretrained()
    codes, model = CodePredictor.from_pretrained(landmarker), load_head_model("nphm-small")
    return lambda **options: LiveTracker(model, landmarker, codes, (384, 288), **options)


def test_the_mean_head_becomes_the_person_s(make):
    with make(smooth=0.0) as tracker:
        step = SETTLE_S / (FEWEST - 1)
        before = [tracker.step(Frame(i, i * step, portrait(i))) for i in range(FEWEST)]
        mean = tracker.person
        assert all(frame.person is mean for frame in before)
        assert tracker._future is not None
        tracker._future.result()
        # Pictures of the first twelve in turn, so that what changes is the head.
        after = [tracker.step(Frame(FEWEST + i, SETTLE_S + (i + 1) / 25, portrait(i))) for i in range(FEWEST)]
    assert tracker.person is not mean
    assert tracker.settled_at == pytest.approx(SETTLE_S + 1 / 25)
    error = [float(np.mean([f.track.landmark_error_px[0] for f in frames])) for frames in (before, after)]
    assert error[1] < 0.9 * error[0]
    last = after[-1]
    assert last.vertices().shape == last.person.rig.neutral.shape
    assert 0.2 < last.track.t[0, 2] < 2
    weights = dict(zip(ARKIT_BLENDSHAPES, last.track.arkit[0], strict=True))
    assert weights["mouthSmileLeft"] > 0.3
    assert weights["eyeBlinkLeft"] < 0.3


def test_a_frame_without_a_face_is_lost_and_the_next_is_as_a_first(make):
    with make() as tracker:
        for i in range(4):
            tracker.step(Frame(i, i / 25, portrait(0)))
        lost = tracker.step(Frame(4, 4 / 25, np.zeros_like(portrait(0))))
        assert lost.lost
        assert np.isnan(lost.track.R).all()
        again = tracker.step(Frame(5, 5 / 25, portrait(12)))
    with make(smooth=0.0) as fresh:
        alone = fresh.step(Frame(0, 0.0, portrait(12)))
    np.testing.assert_allclose(again.track.t, alone.track.t, atol=2e-3)  # 12 mm from the portraits before


def test_known_identity_and_camera_are_kept(make):
    from nphm_track.cameras.intrinsics import Intrinsics

    z_id = np.full(load_head_model("nphm-small").config.identity_dim, 0.01, np.float32)
    camera = Intrinsics.from_focal(500.0, (384, 288))
    with make(z_id=z_id, camera=camera) as tracker:
        assert tracker.person.camera is camera
        for i in range(FEWEST):
            tracker.step(Frame(i, i * SETTLE_S / (FEWEST - 1), portrait(i)))
        person = tracker._future.result()
    assert person.camera is camera
    np.testing.assert_array_equal(person.z_id, z_id)


def test_rate_and_latency():
    meter = Meter()
    for i in range(50):
        meter.add(arrived=i / 10, done=i / 10 + 0.03, tracked=i > 0)
    assert meter.rate == pytest.approx(10)
    meter.add(arrived=5.0, done=5.5, tracked=True)
    assert meter.latency_ms == pytest.approx(30)
    facts = meter.summary(dropped=7)
    assert (facts["frames"], facts["tracked"], facts["dropped"]) == (51, 50, 7)
    assert facts["latency_ms"] == {"median": 30.0, "p95": 30.0, "largest": 500.0}
    assert Meter().summary(0)["rate"] is None


def test_the_command_sends_what_a_file_shows(clip, monkeypatch, capsys):
    with listening() as live_link, listening() as vmc:
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (live_link, vmc)]
        command = ["live", str(clip), "--no-viewer", "--json", "--livelink", addresses[0], "--vmc", addresses[1]]
        monkeypatch.setattr("sys.argv", ["nphm-track", *command, "--subject", "Ada"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        faces, motions = [read_live_link(p) for p in received(live_link)], [read_osc(p) for p in received(vmc)]
    facts = json.loads(capsys.readouterr().out)
    assert facts["frames"] + facts["dropped"] == FRAMES
    assert facts["frames"] == facts["tracked"] == len(faces) == len(motions) > 0
    assert facts["unsent"] == 0
    assert {(face["version"], face["name"], len(face["values"])) for face in faces} == {(6, "Ada", 61)}
    times = [face["time"] for face in faces]
    assert times == sorted(set(times))
    for face, motion in zip(faces, motions, strict=True):
        sent = {name: value for address, (name, value) in motion[2:-1] if address == "/VMC/Ext/Blend/Val"}
        assert sent["jawOpen"] == pytest.approx(face["values"][17])


def listening() -> socket.socket:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    return s


def received(s: socket.socket) -> list[bytes]:
    s.setblocking(False)
    out = []
    while True:
        try:
            out.append(s.recv(65536))
        except BlockingIOError:
            return out
