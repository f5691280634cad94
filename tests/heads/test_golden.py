"""Bit-faithfulness to MonoNPHM: outputs of the reference implementation for seeded weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mononphm import decoder_from_state


@pytest.fixture(scope="module")
def model(public_state: tuple[dict[str, Tensor], dict[str, Tensor]], golden: dict[str, Tensor]) -> NphmDecoder:
    return decoder_from_state(*public_state, golden["anchors_mean"])


@pytest.fixture(scope="module")
def codes(golden: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return golden["code_geo"], golden["code_exp"]


def assert_within(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance


def test_the_weights_are_the_public_models(public_state: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    assert [len(s) for s in public_state] == [730, 16]
    assert [sum(t.numel() for t in s.values()) for s in public_state] == [10_284_627, 937_557]


def test_anchors(model: NphmDecoder, golden: dict[str, Tensor]) -> None:
    assert_within(model.anchors(golden["code_geo"]), golden["out_anchors"], 1e-5)


@torch.no_grad()
def test_deformation(model: NphmDecoder, golden: dict[str, Tensor], codes: tuple[Tensor, Tensor]) -> None:
    offsets, hyper = model.deform(golden["queries"], *codes)
    assert_within(offsets, golden["out_offsets"], 1e-5)
    assert_within(hyper, golden["out_hyper_coords"], 1e-5)
    assert_within(model.canonical_queries(golden["queries"], *codes), golden["out_queries_can"], 1e-5)


@torch.no_grad()
def test_signed_distance(model: NphmDecoder, golden: dict[str, Tensor], codes: tuple[Tensor, Tensor]) -> None:
    assert_within(model.sdf(golden["queries"], *codes), golden["out_sdf"].squeeze(-1), 1e-5)


def test_gradient(model: NphmDecoder, golden: dict[str, Tensor], codes: tuple[Tensor, Tensor]) -> None:
    sdf, gradient = model.gradient(golden["queries"], *codes)
    assert_within(sdf, golden["out_sdf"].squeeze(-1), 1e-5)
    assert_within(gradient, golden["out_gradient"], 1e-3)


@torch.no_grad()
def test_colour(model: NphmDecoder, golden: dict[str, Tensor]) -> None:
    colour = model.colour(golden["queries"], golden["code_geo"], golden["code_app"], golden["code_exp"])
    assert_within(colour, golden["out_color"], 1e-4)
