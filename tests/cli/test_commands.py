from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nphm_track.cli.commands import COMMANDS, load_command
from nphm_track.doctor import EXTRAS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_what_the_list_says(name: str) -> None:
    assert load_command(name).help.startswith(COMMANDS[name][1].removesuffix("."))


def test_help_loads_no_command() -> None:
    code = (
        "import sys; sys.argv = ['nphm-track', '--help']\n"
        "from nphm_track.cli.app import app\n"
        "try: app()\nexcept SystemExit: print(*({'pydantic', 'numpy', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stderr.strip() == ""


def test_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - {"all", "dev"}
    for name, (package, _, _) in EXTRAS.items():
        assert any(requirement.startswith(package) for requirement in declared[name])
