"""``nphm-track evaluate``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nphm_track.cli.json_output import print_json
from nphm_track.errors import InputError

app = typer.Typer(help="Measure: heads against scans, public benchmarks, the quality of video.", no_args_is_help=True)

RESULT_OPTION = typer.Option("-o", "--out", metavar="OUT", help="Folder for results.json and results.md.")
OUT_OPTION = typer.Option("-o", "--out", metavar="OUT", help="Folder for predictions and results; goes on in one.")
CODES_OPTION = typer.Option(help="What the head codes are predicted from. (default: track's)")
MODEL_OPTION = typer.Option(metavar="NAME|PATH", help="Head model. (default: track's)")
REFINE_OPTION = typer.Option("--refine", help="Refine each head, as track does.")
DEVICE_OPTION = typer.Option(help="Torch device of the networks, such as cpu or cuda.")
JSON_OPTION = typer.Option("--json", help="Print JSON and nothing else on stdout.")
QUIET_OPTION = typer.Option("-q", "--quiet", help="Print errors only.")
Codes = Literal["image", "landmarks"]


@app.command("scan")
def scan(
    scan: Annotated[Path, typer.Option("--scan", metavar="FILE", help="The scan: a mesh in m, cm or mm.")],
    points7: Annotated[
        Path, typer.Option(metavar="FILE", help="Its seven points (and nose_tip): .json, .npy, .txt or .pp.")
    ],
    mesh: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare this mesh, with --pred-points7.")] = None,
    pred_points7: Annotated[Path | None, typer.Option(metavar="FILE", help="The seven points of --mesh.")] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="Compare a frame of this run folder.")] = None,
    frame: Annotated[
        int | None, typer.Option(metavar="N", help="Frame number of --run. (default: the most confident)")
    ] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare the head tracked in this photo.")] = None,
    intrinsics: Annotated[Path | None, typer.Option(metavar="FILE", help="Camera of --image, as for track.")] = None,
    codes: Annotated[Codes | None, CODES_OPTION] = None,
    head_model: Annotated[str | None, MODEL_OPTION] = None,
    refine: Annotated[bool, REFINE_OPTION] = False,
    device: Annotated[str, DEVICE_OPTION] = "cpu",
    out: Annotated[Path | None, RESULT_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Error of one head against one scan, as NoW and NeRSemble-SVFR measure it, in mm."""
    if sum(given is not None for given in (mesh, run, image)) != 1:
        raise InputError("say what to compare with the scan: one of --mesh, --run, --image")
    if (mesh is None) != (pred_points7 is None):
        raise InputError("--mesh and --pred-points7 belong together")
    if (frame is not None and run is None) or (intrinsics is not None and image is None):
        raise InputError("--frame belongs to --run, --intrinsics to --image")

    from nphm_track.cli.progress import show_progress
    from nphm_track.evaluation import predict, single
    from nphm_track.tracking.run_folder import read_run

    with show_progress(quiet):
        truth = single.load_scan(scan, points7)
        models: dict[str, str] = {}
        if mesh is not None and pred_points7 is not None:
            head = single.load_mesh(mesh, pred_points7)
        elif run is not None:
            opened = read_run(run)
            head, models = single.head_of_run(opened, frame), opened.info.models
        else:
            assert image is not None
            predictor = predict.ImagePredictor(_options(codes, head_model, refine, device, intrinsics=intrinsics))
            head, models = predictor(image)["posed"], predictor.models
        compared = {"scan": scan, "mesh": mesh, "run": run, "frame": frame, "image": image}
        facts = single.measure(truth, head, command=_command(), models=models, **compared)
    _tell(facts, single.measures_table(facts), single.markdown(facts), out, json, quiet)


@app.command("now")
def now(
    dataset: Annotated[Path, typer.Option(metavar="FOLDER", help="The NoW data set.")],
    out: Annotated[Path, OUT_OPTION],
    split: Annotated[Literal["val", "test"], typer.Option(help="Which images; the test scans are not public.")] = "val",
    codes: Annotated[Codes | None, CODES_OPTION] = None,
    head_model: Annotated[str | None, MODEL_OPTION] = None,
    refine: Annotated[bool, REFINE_OPTION] = False,
    device: Annotated[str, DEVICE_OPTION] = "cpu",
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """The NoW benchmark: predictions for its own evaluation code, and its numbers."""
    from nphm_track.cli.progress import show_progress
    from nphm_track.evaluation.now import evaluate_now
    from nphm_track.evaluation.predict import ImagePredictor

    with show_progress(quiet) as progress:
        predictor = ImagePredictor(_options(codes, head_model, refine, device))
        facts = evaluate_now(dataset, out, predictor, progress, split=split, command=_command())
    _tell_written(facts, out, json, quiet)


@app.command("nersemble")
def nersemble(
    dataset: Annotated[Path, typer.Option(metavar="FOLDER", help="The SVFR images of the NeRSemble benchmark.")],
    out: Annotated[Path, OUT_OPTION],
    codes: Annotated[Codes | None, CODES_OPTION] = None,
    head_model: Annotated[str | None, MODEL_OPTION] = None,
    refine: Annotated[bool, REFINE_OPTION] = False,
    device: Annotated[str, DEVICE_OPTION] = "cpu",
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """NeRSemble-SVFR: the submission for its server, and numbers where scans are at hand."""
    from nphm_track.cli.progress import show_progress
    from nphm_track.evaluation.predict import ImagePredictor
    from nphm_track.evaluation.svfr import evaluate_svfr

    with show_progress(quiet) as progress:
        predictor = ImagePredictor(_options(codes, head_model, refine, device))
        facts = evaluate_svfr(dataset, out, predictor, progress, command=_command())
    _tell_written(facts, out, json, quiet)


@app.command("video")
def video(
    run: Annotated[Path, typer.Argument(metavar="RUN_A", help="A finished run folder.")],
    other: Annotated[Path | None, typer.Argument(metavar="[RUN_B]", help="Another run of the same clip.")] = None,
    referee: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|face-alignment",
            help="Who else judges the expressions: the detector of that extra, or an .npz of its points.",
        ),
    ] = None,
    out: Annotated[Path | None, RESULT_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Quality of tracked video: landmark error, jitter, how expressions follow the picture; two runs side by side."""
    from nphm_track.cli.progress import show_progress
    from nphm_track.evaluation.following import referee_of
    from nphm_track.evaluation.results import provenance, provenance_text
    from nphm_track.evaluation.video import compare_runs, quality_table
    from nphm_track.tracking.run_folder import read_run

    runs = [read_run(path) for path in (run, other) if path is not None]
    models = {name: digest for opened in runs for name, digest in opened.info.models.items()}
    with show_progress(quiet) as progress:
        facts = {
            "protocol": "video quality",
            **provenance(_command(), models),
            **compare_runs(runs, progress, None if referee is None else referee_of(referee, progress)),
        }
    text = quality_table(facts)
    _tell(facts, text, "\n\n".join(["# Video quality", provenance_text(facts), text]), out, json, quiet)


@app.command("leakage")
def leakage(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    out: Annotated[Path | None, RESULT_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Pose leakage: how far blinks, smiles and the jaw move the tracked head."""
    from nphm_track.evaluation import leakage
    from nphm_track.evaluation.results import provenance, provenance_text
    from nphm_track.tracking.run_folder import read_run

    opened = read_run(run)
    facts = {
        "protocol": "pose leakage",
        **provenance(_command(), opened.info.models),
        **leakage.measure(opened.track),
    }
    text = leakage.leakage_table(facts)
    _tell(facts, text, "\n\n".join(["# Pose leakage", provenance_text(facts), text]), out, json, quiet)


@app.command("emotion")
def emotion(
    dataset: Annotated[Path, typer.Option(metavar="FOLDER", help="AffectNet, with train_set and val_set.")],
    out: Annotated[Path, OUT_OPTION],
    train_images: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Learn from the first N images. (default: all)")
    ] = None,
    codes: Annotated[Codes | None, CODES_OPTION] = None,
    head_model: Annotated[str | None, MODEL_OPTION] = None,
    refine: Annotated[bool, REFINE_OPTION] = False,
    device: Annotated[str, DEVICE_OPTION] = "cpu",
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Emotion from expression codes on AffectNet: accuracy, valence and arousal, as the paper's table 4 has them."""
    from nphm_track.cli.progress import show_progress
    from nphm_track.evaluation.emotion import evaluate_emotion
    from nphm_track.evaluation.predict import CodePredictor

    with show_progress(quiet) as progress:
        predictor = CodePredictor(_options(codes, head_model, refine, device))
        facts = evaluate_emotion(
            dataset, out, predictor, progress, command=_command(), models=predictor.models, train_images=train_images
        )
    _tell_written(facts, out, json, quiet)


def _options(codes: str | None, head_model: str | None, refine: bool, device: str, **others: Any) -> Any:
    """Options of the tracker; only those that were chosen, since they are what a folder of results is told by."""
    from nphm_track.tracking.options import TrackOptions

    chosen = {"codes": codes, "head_model": head_model, "refine": refine or None, **others}
    return TrackOptions.build(device=device, **{key: value for key, value in chosen.items() if value is not None})


def _command() -> str:
    return shlex.join(["nphm-track", *sys.argv[1:]])


def _tell(facts: dict[str, Any], text: str, markdown: str, out: Path | None, json: bool, quiet: bool) -> None:
    from nphm_track.evaluation.results import write_results

    written = write_results(out, facts, markdown) if out is not None else None
    if json:
        print_json(facts)
    elif not quiet:
        typer.echo(text)
        if written is not None:
            typer.echo(f"\n{written}")


def _tell_written(facts: dict[str, Any], out: Path, json: bool, quiet: bool) -> None:
    from nphm_track.evaluation.results import RESULTS_MD

    if json:
        print_json(facts)
    elif not quiet:
        typer.echo((out / RESULTS_MD).read_text(encoding="utf-8"))
        typer.echo(out / RESULTS_MD)
