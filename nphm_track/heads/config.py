"""Sizes of the NPHM family: one architecture, the public MonoNPHM checkpoint and our own small model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class HeadConfig:
    """Every size of an NPHM head model (MonoNPHM, CVPR 2024; layout in docs/head-model.md).

    Members 0..2*n_pairs-1 are symmetric pairs (the odd one mirrored), then come ``n_middle`` members on the symmetry
    plane and one member without an anchor. A pair shares one MLP.
    """

    name: str
    global_dim: int
    local_dim: int
    expression_dim: int
    hidden: int  # width of the local MLPs
    hidden_layers: int
    nearest: int  # anchors evaluated for a point, besides the anchor-less member
    sigma_rank: int  # the blend width follows the distance of this nearest anchor (1-based)
    deform_hidden: int
    deform_layers: int
    deform_skip: int | None  # this layer takes the input again
    compressed_dim: int
    hyper_dim: int
    anchor_hidden: int
    activation: Literal["softplus", "silu"]
    n_pairs: int = 30
    n_middle: int = 5
    sigma_divisor: float = 3.75
    free_distance: float = 0.75  # distance to any point that the anchor-less member is given
    local_scale: float = 1.0  # factor on local coordinates before the local MLPs
    deform_scale: float = 1.0  # factor on points before the deformation MLP
    sdf_scale: float = 1.0  # factor on the ensemble's output; distances and offsets are small numbers in model units
    offset_scale: float = 1.0  # factor on the deformation's output
    bilinear: bool = False  # not MonoNPHM's: the last hidden layer of the deformation also gives fields linear in z_ex
    control_points: int = 0  # points of the skin that F follows (heads/controlled.py); 0: a deformation network
    control_members: int = 8  # whose local codes a control point and a member see
    detail_pairs: int = 0  # pairs of members without local codes of their own, where the skin is fine
    appearance: bool = False
    n_landmarks: int = 0
    landmark_rank: int = 0
    identity_basis: int = 0  # columns of the linear identity prior shipped with the model
    expression_names: tuple[str, ...] = ()  # inputs of the linear expression map shipped with the model

    @property
    def n_anchors(self) -> int:
        return 2 * self.n_pairs + self.n_middle

    @property
    def n_members(self) -> int:
        return self.n_anchors + 1

    @property
    def n_mlps(self) -> int:
        return self.n_pairs + self.n_middle + 1

    @property
    def identity_dim(self) -> int:
        return self.global_dim + self.n_members * self.local_dim

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadConfig:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


MONONPHM = HeadConfig(
    name="mononphm",
    global_dim=64,
    local_dim=32,
    expression_dim=100,
    hidden=200,
    hidden_layers=4,
    nearest=12,
    sigma_rank=8,
    deform_hidden=400,
    deform_layers=6,
    deform_skip=3,
    compressed_dim=16,
    hyper_dim=2,
    anchor_hidden=64,
    activation="softplus",
    appearance=True,
)

NPHM_SMALL = HeadConfig(
    name="nphm-small",
    global_dim=32,
    local_dim=16,
    expression_dim=64,
    hidden=64,
    hidden_layers=3,
    nearest=8,
    sigma_rank=8,
    deform_hidden=192,
    deform_layers=4,
    deform_skip=2,
    compressed_dim=32,
    hyper_dim=2,
    anchor_hidden=64,
    activation="silu",
    local_scale=16.0,
    deform_scale=8.0,
    sdf_scale=0.1,
    offset_scale=0.02,
    bilinear=True,
    n_landmarks=478,
    landmark_rank=100,
    identity_basis=100,
)
