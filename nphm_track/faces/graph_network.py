"""A convolutional network as the list of steps of a published graph, run in torch.

MediaPipe's segmentation networks are long and irregular, so that a step list says what they are better than classes
would: ``training/convert_mattes.py`` reads it from the graph and stores it in the configuration of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = dict[str, Any]
"""``op``, ``inputs`` and ``outputs`` (names of activations), shapes of ``constants``, and the attributes of the op."""


class GraphNetwork(nn.Module):
    """The network of a list of steps; activations are [B, C, H, W].

    Args:
        steps: in order of computation. Constant ``k`` of step ``n`` is the parameter ``constants.n_k``.
        input: name of the input among the activations.
        output: name of the activation that is returned.
    """

    def __init__(self, steps: Sequence[Step], input: str, output: str) -> None:
        super().__init__()
        self.steps, self.input, self.output = steps, input, output
        self.constants = nn.ParameterDict(
            {
                f"{number}_{index}": nn.Parameter(torch.zeros(shape))
                for number, step in enumerate(steps)
                for index, shape in enumerate(step.get("constants", ()))
            }
        )
        for step in steps:
            if step["op"] not in OPS:
                raise ValueError(f"unknown step '{step['op']}'")
        self._last_use = {name: number for number, step in enumerate(steps) for name in step["inputs"]}

    def forward(self, x: Tensor) -> Tensor:
        known = {self.input: x}
        for number, step in enumerate(self.steps):
            inputs = [known[name] for name in step["inputs"]]
            constants = [self.constants[f"{number}_{index}"] for index in range(len(step.get("constants", ())))]
            result = OPS[step["op"]](step, *inputs, *constants)
            known.update(zip(step["outputs"], result if isinstance(result, tuple) else (result,), strict=True))
            for name in step["inputs"]:
                if self._last_use[name] == number and name != self.output:
                    known.pop(name, None)  # bounds the memory of the many full-size activations
        return known[self.output]


def _convolve(step: Step, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if step["same"]:
        reach = [step["dilation"] * (n - 1) + 1 for n in weight.shape[-2:]]
        x = F.pad(
            x,
            _same_padding(x.shape[-1], reach[1], step["stride"]) + _same_padding(x.shape[-2], reach[0], step["stride"]),
        )
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, bias, step["stride"], 0, step["dilation"], groups)


def _same_padding(size: int, reach: int, stride: int) -> tuple[int, int]:
    """Before and after, as TensorFlow's SAME has it: the odd pixel goes right and below."""
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _convolve_transposed(step: Step, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    height, width = (step["stride"] * n for n in x.shape[-2:])
    return F.conv_transpose2d(x, weight, bias, step["stride"])[..., :height, :width]


OPS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "conv": _convolve,
    "conv_transpose": _convolve_transposed,
    "relu": lambda step, x: F.relu(x),
    "prelu": lambda step, x, slope: F.prelu(x, slope),
    "hard_swish": lambda step, x: F.hardswish(x),
    "sigmoid": lambda step, x: torch.sigmoid(x),
    "add": lambda step, x, y: x + y,
    "mul": lambda step, x, y: x * y,
    "concat": lambda step, *parts: torch.cat(parts, 1),
    "mean": lambda step, x: x.mean((2, 3), keepdim=True),
    "double": lambda step, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "max_pool": lambda step, x: F.max_pool2d(x, 2, return_indices=True),
    "max_unpool": lambda step, x, places: F.max_unpool2d(x, places, [2, 2]),
}
"""What a step does: called with the step, its inputs and its constants."""
