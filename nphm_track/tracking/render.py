"""Last step: the head's surface in every frame, as meshes and as an overlay on the video."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.files.writing import check_free, placing
from nphm_track.overlap import Workers, ahead
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.tracking.clip import check_not_clip, open_clip
from nphm_track.tracking.progress import LineProgress, Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import RunFolder, read_run, writing_into
from nphm_track.tracking.surface import BLOCK, surface_of
from nphm_track.tracking.written import WrittenFiles
from nphm_track.video.source import Frame, FrameSource
from nphm_track.video.writer import ImageWriter, VideoWriter

Vertices = NDArray[np.float32]


class WrittenBlocks:
    """Rows whose meshes an earlier, killed run left, block by block: a block counts when each mesh is what was written.

    Asked in ascending order; a block is judged once, at its first row, since the run that asks writes meshes itself.
    """

    def __init__(self, folder: RunFolder, track: Track, written: WrittenFiles) -> None:
        self.folder, self.track, self.written = folder, track, written
        self._block, self._whole = -1, False

    def __contains__(self, row: int) -> bool:
        if row // BLOCK != self._block:
            self._block = row // BLOCK
            rows = range(len(self.track))[self._block * BLOCK :][:BLOCK]
            self._whole = all(map(self._on_disk, rows))
        return self._whole

    def _on_disk(self, row: int) -> bool:
        path = self.folder.mesh_path(int(self.track.frame[row]))
        return self.track.status[row] == Status.LOST or path in self.written


def draw_clip(
    source: FrameSource,
    track: Track,
    writer: VideoWriter | ImageWriter | None,
    renderer: OverlayRenderer | None,
    vertices_of: Callable[[int], Vertices],
    progress: Progress,
) -> None:
    """Go through the clip again, ask for the vertices of each frame and draw them.

    Frames are read ahead, and drawn by several threads; vertices are asked for and pictures written in order.
    """
    if writer is None or renderer is None:
        for row in range(len(track)):
            if track.status[row] != Status.LOST:
                vertices_of(row)
            progress.advance()
        return

    def draw(item: tuple[int, Frame, Vertices | None]) -> NDArray[np.uint8]:
        row, frame, vertices = item
        if vertices is None:
            return renderer.draw_lost(frame.image)
        return renderer.draw(frame.image, vertices, track.R[row], track.t[row])

    with closing(ahead(iter(source))) as frames, Workers(renderer.threads) as workers:
        shown = ((row, frame) for row, frame in zip(range(len(track)), frames, strict=False))
        heads = ((row, frame, None if track.status[row] == Status.LOST else vertices_of(row)) for row, frame in shown)
        for (_, frame, _), picture in workers.map(draw, heads):
            writer.write(picture, frame.time)
            progress.advance()


def write_overlay(
    path: Path,
    source: FrameSource,
    track: Track,
    renderer: OverlayRenderer,
    vertices_of: Callable[[int], Vertices],
    progress: Progress,
    stage: str,
) -> None:
    """Draw the whole clip into a video with the clip's timestamps and sound, or into an image if the clip is one."""
    info = source.info
    writer: VideoWriter | ImageWriter
    if info.kind == "image":
        writer = ImageWriter(path)
    else:
        sound = info.path if info.kind == "video" else None
        rate, origin = info.frame_rate, source.clip_origin
        writer = VideoWriter(path, renderer.output_size, frame_rate_hint=rate, source=sound, origin=origin)
    progress.stage(stage, len(track))
    with writer:
        draw_clip(source, track, writer, renderer, vertices_of, progress)
    if writer.warning:
        progress.note(writer.warning)


def render_overlay(
    run: str | Path,
    output: str | Path | None = None,
    *,
    style: str = "shaded",
    opacity: float | None = None,
    scale: float = 1.0,
    side_by_side: bool = False,
    renderer: str = "numba",
    clip: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Draw a finished run's overlay again; returns the file written.

    Args:
        run: the run's folder.
        output: a video, or a picture when the input is one; default: the run's own overlay.
        style: one of ``rendering.shading.STYLES``.
        opacity: of the head over the frame, 0 to 1; default by the style.
        scale: size of what is drawn relative to the frame.
        side_by_side: the untouched frame to the left of the drawn one.
        renderer: "numba" or "pyrender".
        clip: where the run's clip is, when it is not found.
        overwrite: replace a file called ``output``, unless that is the clip.
        progress: told of frames.

    Raises:
        InputError: the run or its clip is missing, or the clip has changed.
        OutputError: the file cannot be written.
    """
    progress = progress or LineProgress()
    done = read_run(run)
    track = done.track
    source = open_clip(done, clip)
    target = Path(output) if output else done.overlay
    if output:
        check_free(target, overwrite)
        check_not_clip(done, target)
    surface = surface_of(done)
    painter = surface.painter(track, style, opacity, side_by_side, scale, renderer)
    with ExitStack() as stack:
        stack.enter_context(source)
        if output:
            place = stack.enter_context(placing(target))
        else:
            stack.enter_context(writing_into(done))
            place = target
        write_overlay(place, source, track, painter, surface.vertices_of, progress, stage="overlay")
    return target
