"""Opening geometry networks: those on the landmark network's trunk, and the paper's."""

from __future__ import annotations

import torch

from nphm_track.geometry.networks import GeometryConfig, GeometryNet
from nphm_track.geometry.vit import VitConfig, VitGeometry
from nphm_track.models import load_network

Geometry = GeometryNet | VitGeometry


def load_geometry(name_or_path: str = "geometry", *, device: torch.device | str = "cpu") -> Geometry:
    """Geometry networks of either kind. Raises ModelError when the file is missing, damaged or of another kind."""

    def build(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> Geometry:
        count = len(tensors["triangles"])
        if "vit" in config:
            sizes = config["vit"]
            assert isinstance(sizes, dict)
            return VitGeometry(VitConfig.from_dict(sizes["n"]), VitConfig.from_dict(sizes["p"]), count)
        sizes = config["geometry"]
        assert isinstance(sizes, dict)
        return GeometryNet(GeometryConfig.from_dict(sizes), count)

    return load_network(name_or_path, "geometry", "a geometry network", build, device)
