"""Geometry error on real scans rendered with known cameras: every view tracked alone, camera known and unknown.

python benchmarks/scans.py --scan-error FOLDER --out FOLDER [--only lps] [--views r_front] [--refine] [--together]

FOLDER holds cases.json (K, R, t of the views, the scan's seven points and nose tip) and the scans. The posed mesh
of the one frame is compared; its seven points are the head model's own landmarks. Writes scans.json and scans.md
(scans_refined with --refine). With --together all views of a scan are one clip; scans_together, scans_together_refined.
--constant FITS SHARE gives everybody the same identity, a share of the mean of the photos' fits (training/README.md):
what is gained beyond it, the networks have seen in the image.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from report import machine, machine_line, save, table

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import POINTS7_478
from nphm_track.errors import NphmTrackError
from nphm_track.evaluation.scan import NAMES7, Scan
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import load_head_model
from nphm_track.regressor.image_regressor import Codes, ImageRegressor
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Track

SCORED_VIEWS = ("r_front", "r_yawL25", "r_yawR25")
"""Views the baselines are means of."""
CAMERAS = ("known", "unknown")
BASELINES = {
    "mean face (canonical)": {"lps": (1.23, 2.19), "fran": (2.01, 2.58), "mmdemo": (1.26, 1.64)},
    "mean head (ICT)": {"lps": (1.67, 2.32), "fran": (1.76, 2.33), "mmdemo": (1.11, 1.54)},
    "landmark mesh": {"lps": (2.08, 2.52), "fran": (1.73, 2.41), "mmdemo": (1.37, 1.80)},
    "landmark mesh, camera known": {"lps": (1.43, 2.20), "fran": (1.61, 2.22), "mmdemo": (1.31, 1.79)},
    "ICT fitted to landmarks": {"lps": (1.53, 1.99), "fran": (1.85, 2.26), "mmdemo": (0.89, 1.29)},
    "ICT fitted, camera known": {"lps": (1.17, 1.73), "fran": (1.57, 2.11), "mmdemo": (0.87, 1.32)},
}
"""Scan-to-mesh median and mean, mm, after a similarity; each image alone, means over the scored views."""


def load_scan(folder: Path, case: dict[str, Any]) -> Scan:
    mesh = trimesh.load_mesh(folder / case["gt"], process=False)
    return Scan(mesh.vertices, mesh.faces, [case["points7"][name] for name in NAMES7], case["nose_tip"])


def give_everybody(model: NphmDecoder, fits: Path, share: float) -> None:
    """From here on the regressor's identity is ``share`` of the mean of photo fits; the rest stays."""
    w = torch.from_numpy(share * np.load(fits)["w"].mean(0))
    z_id = model.identity_basis[:, : len(w)] @ w
    predict = ImageRegressor.predict

    def constant(self: ImageRegressor, *args: Any, **kwargs: Any) -> Codes:
        codes = predict(self, *args, **kwargs)
        return replace(codes, z_id=z_id.expand_as(codes.z_id).clone())

    ImageRegressor.predict = constant  # type: ignore[method-assign]


def write_intrinsics(view: dict[str, Any], size: tuple[int, int], path: Path) -> Path:
    """The view's camera for --intrinsics; the cases count pixel centres from 0, this package from .5."""
    K = np.array(view["K"])
    K[:2, 2] += 0.5
    path.write_text(json.dumps({"K": K.tolist(), "size": size}), encoding="utf-8")
    return path


def head_points7(model: NphmDecoder, result: Track, frame: int = 0) -> NDArray[np.float32]:
    """The head's own seven points [7, 3] in a frame of the track, metres, head space."""
    carry = LandmarkCarrier(model, torch.from_numpy(result.z_id), [POINTS7_478[name] for name in NAMES7])
    return carry(torch.from_numpy(result.z_ex[[frame]]))[0].numpy()


def measure(
    model: NphmDecoder, scan: Scan, image: Path, intrinsics: Path | None, out: Path, refine: bool
) -> dict[str, Any]:
    """Track one image and compare its posed mesh with the scan."""
    try:
        run = track(image, out, intrinsics=intrinsics, overlay=False, refine=refine, overwrite=True)
    except NphmTrackError as error:
        return {"failure": str(error)}
    measured = scan.error(*run.mesh(0), head_points7(model, run.track))
    return {
        "similarity": asdict(measured.similarity),
        "rigid": asdict(measured.rigid),
        "focal_px": float(run.track.K[0, 0]),
        **run.info.quality,
    }


def measure_together(
    model: NphmDecoder, scan: Scan, images: Sequence[Path], intrinsics: Path | None, out: Path, refine: bool
) -> dict[str, Any]:
    """Track all images as one clip and compare the mesh of every frame that has one."""
    clip = out.with_name(out.name + "_clip")
    clip.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        shutil.copyfile(image, clip / f"{k:02d}{image.suffix}")
    try:
        run = track(clip, out, intrinsics=intrinsics, overlay=False, refine=refine, overwrite=True)
    except NphmTrackError as error:
        return {"failure": str(error)}
    rows = [k for k in range(len(run.track)) if (out / "meshes" / f"{k:06d}.ply").is_file()]
    found = [scan.error(*run.mesh(k), head_points7(model, run.track, k)).similarity for k in rows]
    return {"frames": rows, "median": [e.median for e in found], "mean": [e.mean for e in found]}


def markdown_together(facts: dict[str, Any]) -> str:
    rows = [
        [r["case"], r["camera"], *((r["failure"],) if "failure" in r else (float(np.mean(r["median"])),))]
        + ([] if "failure" in r else [float(np.mean(r["mean"])), ", ".join(f"{m:.2f}" for m in r["median"])])
        for r in facts["results"]
    ]
    for camera in CAMERAS:
        some = [r for r in facts["results"] if r["camera"] == camera and "failure" not in r]
        if some:
            rows.append(
                ["**mean**", camera, *(float(np.mean([np.mean(r[k]) for r in some])) for k in ("median", "mean"))]
            )
    columns = ["case", "camera", "median", "mean", "medians of the frames"]
    return "\n\n".join(
        [machine_line(facts["machine"]), "All views as one clip, mm after a similarity.", table(columns, rows)]
    )


def markdown(facts: dict[str, Any]) -> str:
    cases = list(dict.fromkeys(r["case"] for r in facts["results"]))
    scored = [view for view in SCORED_VIEWS if any(r["view"] == view for r in facts["results"])]
    rows = []
    for camera in CAMERAS:
        for mode in ("similarity", "rigid"):
            pairs = [_mean_of(facts["results"], case, camera, mode) for case in cases]
            rows.append([f"**nphm-track, camera {camera}, {mode}**", *map(_pair, pairs), _pair(_mean(pairs))])
    for name, numbers in BASELINES.items():
        pairs = [numbers.get(case) for case in cases]
        rows.append([f"{name}, similarity", *map(_pair, pairs), _pair(_mean(pairs))])
    views = [
        [r["case"], r["view"], r["camera"], r["focal_px"], r["landmark_error_percent"]]
        + [r[mode][key] for mode in ("similarity", "rigid") for key in ("median", "mean")]
        + [r["similarity"][key] for key in ("chamfer_l1", "normal_consistency", "completeness", "scale")]
        for r in facts["results"]
        if "failure" not in r
    ]
    columns = ["case", "view", "camera", "focal px", "landmarks %", "median", "mean", "rigid median", "rigid mean"]
    columns += ["chamfer L1", "normals", "complete", "scale"]
    failed = [r for r in facts["results"] if "failure" in r]
    failures = [f"{r['case']} {r['view']}, camera {r['camera']}: {r['failure']}" for r in failed]
    return "\n\n".join(
        [
            machine_line(facts["machine"]),
            f"Scan-to-mesh median / mean, mm; each image alone, mean over {', '.join(scored)}.",
            table(["method", *cases, "mean"], rows),
            "Every view (mm after a similarity where not said otherwise):",
            table(columns, views),
            *failures,
        ]
    )


def _mean_of(results: list[dict[str, Any]], case: str, camera: str, mode: str) -> tuple[float, float] | None:
    """Median and mean of a case, averaged over the scored views; None when one is missing."""
    some = [r for r in results if r["case"] == case and r["camera"] == camera and r["view"] in SCORED_VIEWS]
    if not some or any("failure" in r for r in some):
        return None
    return _mean([(r[mode]["median"], r[mode]["mean"]) for r in some])


def _mean(pairs: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) < len(pairs):
        return None
    median, mean = np.mean(known, axis=0)
    return float(median), float(mean)


def _pair(pair: tuple[float, float] | None) -> str | None:
    return None if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan-error", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="cases to run")
    parser.add_argument("--views", nargs="+", help="views to run")
    parser.add_argument("--cameras", nargs="+", choices=CAMERAS, default=CAMERAS)
    parser.add_argument("--refine", action="store_true", help="refine each result")
    parser.add_argument("--together", action="store_true", help="all views of a scan as one clip")
    parser.add_argument("--constant", nargs=2, metavar=("FITS", "SHARE"), help="one identity for everybody")
    args = parser.parse_args()
    prepare_torch()
    cases = json.loads((args.scan_error / "cases.json").read_text(encoding="utf-8"))
    model = load_head_model()
    if args.constant:
        give_everybody(model, Path(args.constant[0]), float(args.constant[1]))
    facts: dict[str, Any] = {"machine": machine(), "results": []}
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    for case in args.only or cases:
        scan = load_scan(args.scan_error, cases[case])
        if args.together:
            images = [args.scan_error / view["img"] for view in cases[case]["views"]]
            file = write_intrinsics(cases[case]["views"][0], _size(images[0]), args.out / "runs" / f"{case}.json")
            for camera in args.cameras:
                run, own = args.out / "runs" / f"{case}_together_{camera}", file if camera == "known" else None
                result = measure_together(model, scan, images, own, run, args.refine)
                facts["results"].append({"case": case, "camera": camera} | result)
            continue
        for view in cases[case]["views"]:
            if args.views and view["id"] not in args.views:
                continue
            image = args.scan_error / view["img"]
            file = write_intrinsics(view, _size(image), args.out / "runs" / f"{case}_{view['id']}.json")
            for camera in args.cameras:
                run = args.out / "runs" / f"{case}_{view['id']}_{camera}"
                result = measure(model, scan, image, file if camera == "known" else None, run, args.refine)
                facts["results"].append({"case": case, "view": view["id"], "camera": camera} | result)
    name = "scans" + "_together" * args.together + "_refined" * args.refine
    save(args.out, name, facts, markdown_together(facts) if args.together else markdown(facts))


def _size(image: Path) -> tuple[int, int]:
    with Image.open(image) as picture:
        return picture.size


if __name__ == "__main__":
    main()
