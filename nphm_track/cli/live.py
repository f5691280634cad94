"""``nphm-track live``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nphm_track.cli.json_output import print_json
from nphm_track.errors import InputError

if TYPE_CHECKING:
    from nphm_track.live.session import Meter
    from nphm_track.live.tracker import LiveFrame, LiveTracker

LINE_EVERY = 10.0
"""Seconds between two lines off a terminal."""


def live(
    source: Annotated[
        str,
        typer.Argument(
            metavar="[CAMERA|FILE|URL]",
            help="Number or device of a camera, a file, which is played at its own pace, or an address "
            "(rtsp://, srt://, http://, ...).",
        ),
    ] = "0",
    livelink: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="Send packets of Live Link Face there. (default port: 11111)"),
    ] = None,
    vmc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]", help="Send Virtual Motion Capture messages (OSC) there. (default port: 39539)"
        ),
    ] = None,
    subject: Annotated[str, typer.Option(help="Name of the face in Live Link.")] = "nphm-track",
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Identity code to keep, as of track. (default: solved from the first seconds)"
        ),
    ] = None,
    focal: Annotated[
        float | None, typer.Option(help="Focal length in pixels. (default: solved from the first seconds)")
    ] = None,
    fov: Annotated[float | None, typer.Option(help="Horizontal field of view in degrees.")] = None,
    intrinsics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Calibration of the camera, as of track.")
    ] = None,
    smooth: Annotated[float, typer.Option(help="Strength of the smoothing over time, 0 to 1; 0 is off.")] = 1.0,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Picture size to ask of a camera. (default: its own)")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1, max=1000, help="Frames per second to ask of a camera.")] = None,
    viewer: Annotated[bool, typer.Option(help="Show the head in the browser. Needs the extra 'viewer'.")] = True,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the viewer.")] = 8080,
    host: Annotated[str, typer.Option(help="Address that the viewer serves on.")] = "127.0.0.1",
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Track a face while it is filmed, and send what it does to other programs, until the source ends or Ctrl-C.

    The newest frame is tracked; those for which there was no time are dropped. The head is the mean one for three
    seconds, then the person's own.
    """
    from nphm_track._runtime import flushed_denormals
    from nphm_track.faces.landmarker import FaceLandmarker
    from nphm_track.heads.loading import DEFAULT, load_head_model
    from nphm_track.live import livelink as app
    from nphm_track.live import vmc as protocol
    from nphm_track.live.capture import Capture
    from nphm_track.live.sending import Sender, live_link, virtual_motion_capture
    from nphm_track.live.session import Meter, run
    from nphm_track.live.tracker import LiveTracker
    from nphm_track.models import resolve, sha256
    from nphm_track.regressor.predictor import CodePredictor
    from nphm_track.tracking.identity import code_for
    from nphm_track.tracking.options import TrackOptions

    options = TrackOptions.build(focal=focal, fov=fov, intrinsics=intrinsics, identity=identity, smooth=smooth)
    meter, senders = Meter(), []
    with flushed_denormals(), ExitStack() as stack:
        try:
            if livelink is not None:
                senders.append(Sender(live_link(subject), livelink, app.PORT))
            if vmc is not None:
                senders.append(Sender(virtual_motion_capture(), vmc, protocol.PORT))
            for sender in senders:
                stack.callback(sender.close)
            outputs: list[Callable[[LiveFrame], None]] = [*senders]
            if viewer:
                from nphm_track.viewer.live import LiveViewer

                shown = LiveViewer(host, port)
                stack.callback(shown.close)
                outputs.append(shown)
                _note(shown.url, quiet)
            model, landmarker = load_head_model(DEFAULT), FaceLandmarker.from_pretrained()
            code = None if identity is None else code_for(identity, sha256(resolve(DEFAULT)), model.config.identity_dim)
            capture = stack.enter_context(Capture(source, _size(size), rate))
            camera = options.camera(capture.size, capture.presentation)
            codes = CodePredictor.from_pretrained(landmarker, focal=None if camera is None else float(camera.K[0, 0]))
            tracker = stack.enter_context(
                LiveTracker(model, landmarker, codes, capture.size, camera=camera, z_id=code, smooth=smooth)
            )
            tracker.warm_up(capture.first())
            with _line(quiet) as tell:
                run(capture, tracker, outputs, meter, lambda frame: tell(_words(meter, capture.dropped, frame)))
        except KeyboardInterrupt:
            pass
        if not meter.latencies:
            raise InputError(f"{source}: no frame was tracked")
        if capture.warning:
            _note(f"{source} has ended: {capture.warning}", quiet)
        facts = {"source": source, **meter.summary(capture.dropped), **_settled(tracker)}
        facts["unsent"] = sum(sender.failed for sender in senders)
    if json:
        print_json(facts)
    elif not quiet:
        latency = facts["latency_ms"]
        typer.echo(
            f"{facts['frames']} frames in {facts['seconds']:.1f} s ({facts['rate']:.1f}/s), {facts['tracked']} with a "
            f"face, {facts['dropped']} dropped; latency {latency['median']:.0f} ms, 95 % below {latency['p95']:.0f} ms"
        )


def _settled(tracker: LiveTracker) -> dict[str, Any]:
    """What was found of the person and the camera."""
    return {"settled_at": tracker.settled_at, "focal_px": round(float(tracker.person.camera.K[0, 0]), 1)}


def _words(meter: Meter, dropped: int, frame: LiveFrame) -> str:
    if frame.lost:
        state = "no face"
    else:
        state = "settling" if frame.person.expressions is None else f"{frame.track.landmark_error_px[0]:.1f} px off"
    return f"{meter.rate:.1f} frames/s, {meter.latency_ms:.0f} ms late, {dropped} dropped, {state}"


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a size; write WxH, as in 1280x720") from None
    return width, height


def _note(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Where the state is told: one line of a terminal that changes, else a line every ten seconds."""
    import time

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, last = Console(stderr=True), time.monotonic()

    def now_and_then(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            _note(line, quiet)

    if quiet or not console.is_terminal:
        yield now_and_then
        return
    with Live(console=console, refresh_per_second=4, transient=True) as shown:
        yield lambda line: shown.update(Text(line))
