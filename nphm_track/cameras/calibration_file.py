"""Calibration files that other tools write, as text; what each of them means is in ``calibration_formats``."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from nphm_track.cameras.calibration_formats import Calibration, from_colmap, from_data
from nphm_track.errors import InputError
from nphm_track.files.reading import parse_json, read_text, reading

LARGEST = 16 << 20
"""Bytes; a transforms.json of some ten thousand frames fits."""


def read_calibration(path: str | Path) -> Calibration:
    """Read any supported format. Raises InputError with the reason when the file is none, or its lens is not held."""
    path = Path(path)
    with reading(path, "a camera calibration"):
        text = read_text(path, LARGEST)
    try:
        return _parsed(path, text)
    except KeyError as error:
        raise InputError(f"{path} is no camera calibration: {error.args[0]} is missing") from None
    except (ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError, ElementTree.ParseError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).replace("\n", " ")
        raise InputError(f"{path} is no camera calibration that can be used: {reason}") from None


def _parsed(path: Path, text: str) -> Calibration:
    begun = text.lstrip()
    if begun.startswith("<"):
        return from_data(_xml(begun))
    if begun.startswith(("{", "[")):
        return from_data(parse_json(begun))
    if path.suffix.lower() in (".yml", ".yaml") or begun.startswith(("%YAML", "---")):
        return from_data(_yaml(text))
    rows = [line.split() for line in begun.splitlines() if line.strip() and not line.startswith("#")]
    if rows and len(rows[0]) > 4 and rows[0][1].isupper():
        return from_colmap(rows)
    return from_data([[float(number) for number in " ".join(row).replace(",", " ").split()] for row in rows])


class _Loader(yaml.SafeLoader):
    """YAML as OpenCV, ROS and Kalibr write it: plain values, OpenCV's matrices, no aliases (a few lines of which can
    stand for gigabytes)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it uses YAML aliases")
        return super().compose_node(parent, index)


_Loader.add_constructor(
    "tag:yaml.org,2002:opencv-matrix", lambda loader, node: loader.construct_mapping(node, deep=True)
)


def _yaml(text: str) -> Any:
    lines = ("" if line.startswith("%") else line for line in text.splitlines())  # OpenCV's directive is no YAML
    return yaml.load("\n".join(lines), Loader=_Loader)  # a SafeLoader


def _xml(text: str) -> dict[str, Any]:
    """An OpenCV FileStorage in XML as the YAML of the same file would be."""
    if "<!" in text:
        raise ValueError("it declares XML entities")
    return {node.tag: _xml_value(node) for node in ElementTree.fromstring(text)}


def _xml_value(node: ElementTree.Element) -> Any:
    if len(node):
        return {child.tag: _xml_value(child) for child in node}
    words = (node.text or "").split()
    return words if node.tag == "data" else " ".join(words)
