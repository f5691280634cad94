"""Convert MediaPipe's networks for person and hair (TensorFlow Lite) to one safetensors file.

    python training/convert_mattes.py selfie_segmentation.tflite hair_segmentation.tflite models/mattes
    python training/convert_mattes.py ... --check PICTURES

Needs the ``tflite`` package (the flatbuffer schema). With ``--check`` the result is compared on a folder of pictures
with MediaPipe's own runtime (``mediapipe==0.10.21``): the networks have operators that no other runtime knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import torch
from PIL import Image

from nphm_track.faces.graph_network import GraphNetwork, Step
from nphm_track.faces.mattes import KIND, build_networks
from nphm_track.models import WEIGHTS_NAME, read_weights, sha256, write_weights

OPERATORS = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
DTYPES = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}
PLAIN = {
    "RELU": "relu", "PRELU": "prelu", "HARD_SWISH": "hard_swish", "LOGISTIC": "sigmoid", "ADD": "add", "MUL": "mul",
    "CONCATENATION": "concat", "AVERAGE_POOL_2D": "mean", "RESIZE_BILINEAR": "double",
    "MaxPoolingWithArgmax2D": "max_pool", "MaxUnpooling2D": "max_unpool",
}  # fmt: skip
"""Steps without attributes: pools are over the whole picture or 2 x 2, pictures are resized to twice their size."""
LARGEST_DIFFERENCE = 1e-3
"""Of a matte (0..1) from the reference runtime's."""


def read_graph(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arguments of ``GraphNetwork`` and its parameters."""
    model = tflite.Model.GetRootAs(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    constants = dict(_constants(model, graph))
    steps: list[Step] = []
    weights: dict[str, torch.Tensor] = {}
    for index in range(graph.OperatorsLength()):
        op = graph.Operators(index)
        code = model.OperatorCodes(op.OpcodeIndex())
        name = OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        name = code.CustomCode().decode() if name == "CUSTOM" else name
        outputs = [str(i) for i in op.OutputsAsNumpy()]
        if name == "DEQUANTIZE":  # float16 -> float32, exact
            constants[int(outputs[0])] = constants[int(op.Inputs(0))]
            continue
        step, order = _step(name, op)
        inputs = [int(i) for i in op.InputsAsNumpy()]
        step |= {"inputs": [str(i) for i in inputs if i not in constants], "outputs": outputs}
        held = [constants[i] for i in inputs if i in constants and constants[i].numel()]
        held = [h.permute(order) if h.ndim == 4 and order else h.flatten() for h in held]
        step["constants"] = [list(h.shape) for h in held]
        weights |= {f"constants.{len(steps)}_{k}": h for k, h in enumerate(held)}
        steps.append(step)
    return {"steps": steps, "input": str(graph.Inputs(0)), "output": str(graph.Outputs(0))}, weights


def _constants(model: Any, graph: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Constant tensors by number; those that are no floats, sizes of resized pictures, are empty."""
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        data = model.Buffers(tensor.Buffer())
        if not data.DataLength():
            continue
        if tensor.Type() not in DTYPES:
            yield index, torch.zeros(0)
            continue
        values = data.DataAsNumpy().view(DTYPES[tensor.Type()]).reshape(tuple(tensor.ShapeAsNumpy()))
        yield index, torch.from_numpy(values.astype(np.float32))


def _step(name: str, op: Any) -> tuple[Step, tuple[int, ...]]:
    """The op with its attributes, and the order that turns its kernel into torch's."""
    if name in PLAIN:
        return {"op": PLAIN[name]}, ()
    if name == "Convolution2DTransposeBias":  # [out, h, w, in]; its options say SAME padding and strides of 2
        return {"op": "conv_transpose", "stride": 2}, (3, 0, 1, 2)
    depthwise = name == "DEPTHWISE_CONV_2D"
    options = tflite.DepthwiseConv2DOptions() if depthwise else tflite.Conv2DOptions()
    options.Init(op.BuiltinOptions().Bytes, op.BuiltinOptions().Pos)
    assert not options.FusedActivationFunction(), "activations are steps of their own in these graphs"
    attributes = {"stride": options.StrideH(), "dilation": options.DilationHFactor()}
    same = options.Padding() == tflite.Padding.SAME
    # Depthwise: [1, h, w, channels]; otherwise [out, h, w, in].
    return {"op": "conv", **attributes, "same": same}, (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)


def convert(person: Path, hair: Path, out: Path) -> Path:
    """Write ``out/model.safetensors`` and return its path."""
    config: dict[str, Any] = {"kind": KIND, "source": {}}
    tensors = {}
    for name, path in (("person", person), ("hair", hair)):
        config[name], weights = read_graph(path)
        config["source"][name] = {"file": path.name, "sha256": sha256(path)}
        tensors |= {f"{name}.{key}": value for key, value in weights.items()}
    written = out / WEIGHTS_NAME
    write_weights(written, tensors, config)
    return written


def check(written: Path, files: dict[str, Path], pictures: Path) -> None:
    """Compare both networks with MediaPipe's runtime. Raises SystemExit where they differ."""
    tensors, config = read_weights(written)
    networks = build_networks(config, tensors)
    networks.load_state_dict(tensors)
    for name, path in files.items():
        network = networks[name].eval()
        assert isinstance(network, GraphNetwork)
        size = 256 if name == "person" else 512
        worst = 0.0
        for number, file in enumerate(sorted(pictures.iterdir())):
            image = np.asarray(Image.open(file).convert("RGB").resize((size, size)))
            if name == "hair":  # its fourth channel is the last frame's matte: none, then half of the picture
                last = np.full((size, size, 1), 255 * (number % 2), np.uint8)
                last[:, size // 2 :] = 0
                image = np.concatenate([image, last], 2)
            with torch.inference_mode():
                ours = network(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])[0]
            matte = ours[0] if name == "person" else ours.softmax(0)[1]
            worst = max(worst, float(np.abs(matte.numpy() - reference(path, image)).max()))
        print(f"{name}: differs from the reference runtime by {worst:.1e} at most")
        if worst > LARGEST_DIFFERENCE:
            raise SystemExit(1)


GRAPH = """
input_stream: "image"
output_stream: "matte"
node {{ calculator: "TensorConverterCalculator" input_stream: "IMAGE:image" output_stream: "TENSORS:pixels"
  node_options {{ [type.googleapis.com/mediapipe.TensorConverterCalculatorOptions] {{
    zero_center: false max_num_channels: {channels} }} }} }}
node {{ calculator: "TfLiteCustomOpResolverCalculator" output_side_packet: "OP_RESOLVER:operators"
  node_options {{ [type.googleapis.com/mediapipe.TfLiteCustomOpResolverCalculatorOptions] {{ use_gpu: false }} }} }}
node {{ calculator: "InferenceCalculatorCpu" input_side_packet: "OP_RESOLVER:operators"
  input_stream: "TENSORS:pixels" output_stream: "TENSORS:values"
  node_options {{ [type.googleapis.com/mediapipe.InferenceCalculatorOptions] {{
    model_path: "{path}" delegate {{ tflite {{}} }} }} }} }}
node {{ calculator: "TensorsToSegmentationCalculator" input_stream: "TENSORS:values" output_stream: "MASK:matte"
  node_options {{ [type.googleapis.com/mediapipe.TensorsToSegmentationCalculatorOptions] {{
    activation: {activation} }} }} }}
"""


def reference(path: Path, image: np.ndarray) -> np.ndarray:
    """Matte [H, W] of MediaPipe's own runtime for an image [H, W, 3 or 4] of the network's size."""
    import mediapipe

    channels = image.shape[2]
    activation = "NONE" if channels == 3 else "SOFTMAX output_layer_index: 1"
    config = GRAPH.format(path=path.resolve(), channels=channels, activation=activation)
    graph = mediapipe.CalculatorGraph(graph_config=config)
    mattes = []
    to_image = mediapipe.packet_getter.get_image
    graph.observe_output_stream("matte", lambda _, packet: mattes.append(to_image(packet).numpy_view().copy()))
    graph.start_run()
    kind = mediapipe.ImageFormat.SRGB if channels == 3 else mediapipe.ImageFormat.SRGBA
    frame = mediapipe.ImageFrame(image_format=kind, data=np.ascontiguousarray(image))
    graph.add_packet_to_input_stream("image", mediapipe.packet_creator.create_image_frame(frame).at(0))
    graph.close_all_packet_sources()
    graph.wait_until_done()
    return np.asarray(mattes[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("person", type=Path, help="selfie_segmentation.tflite")
    parser.add_argument("hair", type=Path, help="hair_segmentation.tflite")
    parser.add_argument("out", type=Path, help="folder for model.safetensors")
    parser.add_argument("--check", type=Path, metavar="PICTURES", help="folder of pictures to compare on")
    args = parser.parse_args()
    written = convert(args.person, args.hair, args.out)
    print(f"{written}: {written.stat().st_size} bytes, sha256 {sha256(written)}")
    if args.check:
        check(written, {"person": args.person, "hair": args.hair}, args.check)
