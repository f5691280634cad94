"""The commands by name, each imported only when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "track": ("track:track", "Track the face of VIDEO (the default command)."),
    "live": ("live:live", "Track a face while it is filmed, and send what it does to other programs."),
    "render-overlay": ("overlay:render_overlay", "Draw the overlay of a run again, with another look."),
    "export": ("export:export", "Write a run's heads, cameras or parameters in the format of another program."),
    "relink": ("relink:relink", "Tell a run where its clip is now, after either was moved."),
    "report": ("report_page:report", "Write report.html: the run on one page that needs no network, for any browser."),
    "view": ("view:view", "View a run in the browser, or two side by side."),
    "fit-scan": ("fit_scan:fit_scan", "Fit a head to a 3-D scan: codes, pose, mesh and error map."),
    "batch": ("batch:app", "Track all takes of a capture session: nphm-track batch FOLDER -o OUT."),
    "evaluate": ("evaluate:app", "Measure: heads against scans, public benchmarks, the quality of video."),
    "train": ("train:train", "Train one of the models from its recipe."),
    "models": ("models:app", "List the released models, check their files, or convert a public one."),
    "doctor": ("doctor:doctor", "Check this installation, or validate a run folder."),
}
"""Name to where the command is (module of ``nphm_track.cli``: function or application) and what the list says of it."""


class LazyGroup(TyperGroup):
    """A group of ``COMMANDS``: its list shows stand-ins, and a command is imported when it is resolved."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, about) in COMMANDS.items():
            self.commands.setdefault(name, TyperCommand(name, help=about))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest


def load_command(name: str) -> Any:
    """The command called ``name``, ready to run."""
    module, attribute = COMMANDS[name][0].split(":")
    found = getattr(import_module(f"nphm_track.cli.{module}"), attribute)
    holder = typer.Typer(add_completion=False)
    holder.callback()(lambda: None)  # makes it a group, whatever it holds
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
    else:
        holder.command(name)(found)
    return typer.main.get_command(holder).commands[name]  # type: ignore[attr-defined]
