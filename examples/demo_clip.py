"""A clip with known motion, made from the public-domain astronaut photograph that scikit-image ships.

    python examples/demo_clip.py demo                       # writes demo/clip.mp4 and demo/motion.npz
    nphm-track demo/clip.mp4 -o demo/run
    python examples/demo_clip.py demo --compare demo/run    # how far the tracked motion is from the known one

The photograph is turned, enlarged and shifted in the image plane, as a camera that rolls, nears and pans would see it.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage import data

from nphm_track import read_run
from nphm_track.errors import NphmTrackError

SIZE = (640, 480)
FPS = 25
FRAMES = 48
FACE = (224.0, 118.0)  # pixel between the eyes and the mouth in the photograph
BASE_SCALE = 2.1  # photograph to clip: the face becomes some 180 px wide


def known_motion(n: int = FRAMES) -> NDArray[np.float64]:
    """[n, 2, 3] affine maps from pixels of the photograph to pixels of frame i, pixel centres at 0.5.

    Roll of +-12 degrees, zoom 1..1.15 and shifts of tens of pixels, all smooth.
    """
    phase = np.linspace(0, 2 * np.pi, n)
    roll = np.radians(12) * np.sin(phase)
    scale = BASE_SCALE * (1 + 0.075 * (1 - np.cos(phase)))
    centre = np.stack([SIZE[0] / 2 + 40 * np.sin(2 * phase), SIZE[1] / 2 + 25 + 15 * np.sin(phase)], 1)
    turn = scale[:, None, None] * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]).transpose(
        2, 0, 1
    )
    return np.concatenate([turn, (centre - turn @ np.array(FACE))[:, :, None]], 2)


def write_clip(folder: Path) -> None:
    """Write ``clip.mp4`` and ``motion.npz`` (the affine maps and the frames' times)."""
    folder.mkdir(parents=True, exist_ok=True)
    photograph = data.astronaut().astype(np.float32)
    maps = known_motion()
    v, u = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for affine in maps:
            back = np.linalg.inv(affine[:, :2])
            x, y = np.tensordot(back, np.stack([u - affine[0, 2], v - affine[1, 2]]), 1) - 0.5
            channels = [map_coordinates(photograph[..., c], [y, x], order=1, mode="mirror") for c in range(3)]
            image = np.stack(channels, -1).round().clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    np.savez(folder / "motion.npz", maps=maps, time=np.arange(len(maps)) / FPS)
    print(f"{folder / 'clip.mp4'}: {len(maps)} frames of {SIZE[0]}x{SIZE[1]}")


def compare(folder: Path, run_path: Path) -> None:
    """Print how far the fitted head's points move from where the known motion takes them.

    Every frame's points are carried back to the photograph, where a perfect track stands still; the mean place of a
    point is its reference, and distances are measured in the frame.
    """
    track = read_run(run_path).track
    with np.load(folder / "motion.npz") as file:
        nearest = np.abs(file["time"][:, None] - track.time[None]).argmin(0)
        maps = file["maps"][nearest]
    present = np.isfinite(track.landmarks_fit).all((1, 2))
    points, turn, shift = track.landmarks_fit[present], maps[present, :, :2], maps[present, :, 2]
    still = np.einsum("nij,npj->npi", np.linalg.inv(turn), points - shift[:, None]).mean(0)
    expected = still @ turn.transpose(0, 2, 1) + shift[:, None]
    error = np.linalg.norm(points - expected, axis=-1)
    eyes = np.linalg.norm(expected[:, 36] - expected[:, 45], axis=-1, keepdims=True)
    travelled = np.linalg.norm(expected - expected[0], axis=-1)
    print(
        f"tracked {present.sum()} of {len(track)} frames; points moved by up to {travelled.max():.0f} px; "
        f"off the known motion by {error.mean():.2f} px on average, {error.max():.2f} px at most "
        f"({100 * (error / eyes).mean():.2f} % and {100 * (error / eyes).max():.2f} % of the inter-ocular distance)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where clip.mp4 and motion.npz go")
    parser.add_argument("--compare", type=Path, metavar="RUN", help="compare a run on the clip with the known motion")
    arguments = parser.parse_args()
    try:
        if arguments.compare:
            compare(arguments.folder, arguments.compare)
        else:
            write_clip(arguments.folder)
    except (NphmTrackError, OSError) as error:
        parser.exit(getattr(error, "exit_code", 2), f"{error}\n")


if __name__ == "__main__":
    main()
