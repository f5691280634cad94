"""Convert Google's ``face_landmarker.task`` (three TensorFlow Lite networks) to one safetensors file.

    python training/convert_face_landmarker.py face_landmarker.task models/face_landmarker
    python training/fit_face_signature.py FACES models/face_landmarker

Needs the ``tflite`` package (the flatbuffer schema). The bundle stores float16 weights; so does the result.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import torch
from torch import nn

from nphm_track.faces.networks import BlendshapeNet, LandmarkNet, build_networks
from nphm_track.models import WEIGHTS_NAME, sha256, write_weights

BLENDSHAPE_POINTS = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80,
    81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153,
    154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251,
    263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318,
    321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386,
    387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, *range(468, 478),
)  # fmt: skip
"""Landmarks the blendshape network reads (the list stands in MediaPipe's FaceBlendshapesGraph, not in the bundle)."""

CONFIG: dict[str, Any] = {
    "architecture": "face_landmarker",
    "detector": {
        "stem": 24,
        "fine": [[24, 1], [28, 1], [32, 2], [36, 1], [42, 1], [48, 2], [56, 1], [64, 1], [72, 1], [80, 1], [88, 1]],
        "coarse": [[96, 2], [96, 1], [96, 1], [96, 1], [96, 1]],
    },
    "landmarks": {"stages": [16, 32, 64, 128, 128, 128, 128], "blocks": 4, "max_mid": 64},
    "blendshapes": {
        "points": list(BLENDSHAPE_POINTS), "tokens": 96, "width": 64, "token_hidden": 384, "channel_hidden": 256,
        "blocks": 4,
    },
    "signature": {"channels": 128, "cells": 2, "size": 128},
}  # fmt: skip

OPERATORS = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
DTYPES = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}


class Graph:
    """The operators of a network in order, with the constants each one reads."""

    def __init__(self, flatbuffer: bytes) -> None:
        model = tflite.Model.GetRootAs(flatbuffer, 0)
        graph = model.Subgraphs(0)
        constants: dict[int, torch.Tensor] = {}
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            data = model.Buffers(tensor.Buffer())
            if data.DataLength() and tensor.Type() in DTYPES:
                shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
                values = data.DataAsNumpy().view(DTYPES[tensor.Type()]).reshape(shape)
                constants[index] = torch.from_numpy(values.astype(np.float32))
        self.steps: list[tuple[str, list[torch.Tensor]]] = []
        for index in range(graph.OperatorsLength()):
            op = graph.Operators(index)
            code = model.OperatorCodes(op.OpcodeIndex())
            name = OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            if name == "DEQUANTIZE":  # float16 -> float32, exact
                constants[int(op.Outputs(0))] = constants[int(op.Inputs(0))]
                continue
            inputs = [constants[int(i)] for i in op.InputsAsNumpy() if int(i) in constants]
            self.steps.append((name, inputs))

    def layers(self, *names: str) -> list[tuple[str, list[torch.Tensor]]]:
        """Steps of these kinds that read at least one constant."""
        return [(name, inputs) for name, inputs in self.steps if name in names and inputs]


def fill_convolutions(network: nn.Module, graph: Graph) -> None:
    """Copy convolutions and PReLU slopes, in order, into a network whose layers are declared in the same order."""
    layers = graph.layers("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU")
    if isinstance(network, LandmarkNet):
        del layers[-3]  # a third output, a score that neither MediaPipe nor we use
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.PReLU)]
    for module, (name, inputs) in zip(modules, layers, strict=True):
        if name == "PRELU":
            copy_into(module.weight, inputs[0].flatten())
            continue
        # Conv: [out, h, w, in]; depthwise: [1, h, w, channels].
        order = (3, 0, 1, 2) if name == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
        copy_into(module.weight, inputs[0].permute(order))
        copy_into(module.bias, inputs[1])  # type: ignore[arg-type]


def fill_blendshapes(network: BlendshapeNet, graph: Graph) -> None:
    """Copy the mixer: its linear layers are 1x1 convolutions, its norms a product with a scale vector."""
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    for module, (_, inputs) in zip(linears, graph.layers("CONV_2D"), strict=True):
        copy_into(module.weight, inputs[0].flatten(1))
        copy_into(module.bias, inputs[1])
    scales = [inputs[0] for _, inputs in graph.layers("MUL") if inputs[0].numel() > 1]
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    for norm, scale in zip(norms, scales, strict=True):
        copy_into(norm.weight, scale)
    (_, (token,)) = graph.layers("CONCATENATION")[0]
    copy_into(network.class_token, token.reshape(1, 1, -1))


def copy_into(parameter: torch.Tensor, values: torch.Tensor) -> None:
    if parameter.shape != values.shape:
        raise ValueError(f"layer of shape {tuple(parameter.shape)} meets values of shape {tuple(values.shape)}")
    parameter.data.copy_(values)


def convert(task: Path, out: Path) -> Path:
    """Write ``out/model.safetensors`` from the bundle ``task`` and return its path."""
    with zipfile.ZipFile(task) as bundle:
        files = {"detector": "face_detector", "landmarks": "face_landmarks_detector", "blendshapes": "face_blendshapes"}
        graphs = {key: Graph(bundle.read(f"{name}.tflite")) for key, name in files.items()}
    mixer = graphs["blendshapes"]
    scalars = {name: float(inputs[0]) for name, inputs in mixer.layers("MUL", "ADD") if inputs[0].numel() == 1}
    config = {**CONFIG, "source": {"file": task.name, "sha256": sha256(task)}}
    config["blendshapes"] = {**CONFIG["blendshapes"], "scale": scalars["MUL"], "eps": scalars["ADD"]}

    networks = build_networks(config)
    fill_convolutions(networks["detector"], graphs["detector"])
    fill_convolutions(networks["landmarks"], graphs["landmarks"])
    fill_blendshapes(networks["blendshapes"], mixer)  # type: ignore[arg-type]
    tensors = {f"{key}.{name}": value for key, net in networks.items() for name, value in net.state_dict().items()}
    path = out / WEIGHTS_NAME
    write_weights(path, tensors, config, half=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path, help="face_landmarker.task")
    parser.add_argument("out", type=Path, help="folder for model.safetensors")
    args = parser.parse_args()
    written = convert(args.task, args.out)
    print(f"{written}: {written.stat().st_size} bytes, sha256 {sha256(written)}")
