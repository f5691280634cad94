"""The door to the engine that runs the networks: OpenVINO's on a CPU, torch itself everywhere else.

OpenVINO compiles a torch module to code for the processor at hand, which takes a third of torch's time on networks of
this size; the module stays the twin for other devices, for training and for platforms without the package. Rows of a
batch are run one by one, so that a result never depends on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nphm_track.version import __version__

log = logging.getLogger(__name__)

ENGINE = "NPHM_TRACK_ENGINE"
"""Environment variable: ``torch`` keeps networks out of OpenVINO."""
CACHE = "NPHM_TRACK_CACHE"
"""Environment variable: folder of the converted networks."""
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
"""Full precision: what takes bfloat16 by itself is off by pixels. Not pinned: each network would be pinned to the same
first core. Every call gets one thread, two being slower on convolutions this small; calls run beside each other."""
MOST_COMPILED = 8
"""Compiled networks that a process keeps, for the next engine of the same network."""
_COMPILED: dict[str, Any] = {}
_LOCK = threading.Lock()


class Engine:
    """A network without state as a function from tensors [B, ...] to tensors [B, ...].

    Args:
        network: module whose ``forward`` takes tensors and returns one or a tuple of them.
        example: inputs of one row, [1, ...] each: they tell the shapes that the network is compiled for.

    Compiled at the first call, once a process; threads may call it at the same time.
    """

    def __init__(self, network: nn.Module, example: Sequence[Tensor]) -> None:
        self.network, self.example = network, tuple(example)
        self._own = threading.local()
        on_cpu = all(p.device.type == "cpu" for p in (*network.parameters(), *network.buffers()))
        self.uses_openvino = on_cpu and name() == "openvino"

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        request = self._request() if self.uses_openvino and len(inputs[0]) else None
        if request is None:
            out = self.network(*inputs)
            return out if isinstance(out, tuple) else (out,)
        rows = [np.ascontiguousarray(x.numpy()) for x in inputs]
        results: list[list[np.ndarray]] = []
        for row in range(len(inputs[0])):
            request.infer([x[row : row + 1] for x in rows], share_inputs=True)
            results.append([tensor.data.copy() for tensor in request.output_tensors])
        return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*results, strict=True))

    def _request(self) -> Any:
        """This thread's own memory for the compiled network; None when OpenVINO does not take the network."""
        if not hasattr(self._own, "request"):
            with _LOCK:
                try:
                    self._own.request = _compiled(self.network, self.example).create_infer_request()
                except Exception as error:  # OpenVINO's own kinds have no common one
                    log.warning("OpenVINO does not take a network, which runs in torch: %s", _first_line(error))
                    self._own.request, self.uses_openvino = None, False
        return self._own.request


def release() -> None:
    """Give back the memory of compiled networks that no engine uses any more."""
    with _LOCK:
        _COMPILED.clear()


@cache
def name() -> str:
    """The engine of networks on the CPU: ``openvino``, or ``torch`` where that is not installed or not wanted."""
    if os.environ.get(ENGINE) == "torch":
        return "torch"
    try:
        _openvino()
    except (ImportError, OSError):
        return "torch"
    return "openvino"


def _openvino() -> Any:
    """The package, kept from sending word of its use to its makers, as it does when it finds ``openvino_telemetry``."""
    if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
        return importlib.import_module("openvino")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # Python's way to say that there is none
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules["openvino_telemetry"]


def described() -> str:
    """The engine and its version, for people."""
    if name() == "torch":
        return f"torch {torch.__version__}"
    return f"OpenVINO {_openvino_version()}, converted networks in {cache_folder()}"


def cache_folder() -> Path:
    """Where converted networks are kept: ``NPHM_TRACK_CACHE``, or a folder of the user's cache."""
    if CACHE in os.environ:
        return Path(os.environ[CACHE])
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        root = Path("~/Library/Caches")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.path.expanduser(root)) / "nphm-track"


def _compiled(network: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """The network compiled for this processor, from the cache where it was converted before."""
    key = _key(network, example)
    if key not in _COMPILED:
        while len(_COMPILED) >= MOST_COMPILED:
            del _COMPILED[next(iter(_COMPILED))]
        path, core = cache_folder() / f"{key}.network", _openvino().Core()
        try:
            model = core.read_model(*_unpacked(path.read_bytes()))
        except (OSError, ValueError, RuntimeError):  # not there, or damaged
            stored = _converted(network, example)
            _keep(path, _packed(*stored))
            model = core.read_model(*stored)  # as later processes will: last bits depend on it
        calls = torch.get_num_threads()  # at the same time
        _COMPILED[key] = core.compile_model(
            model, "CPU", {**SETTINGS, "NUM_STREAMS": calls, "INFERENCE_NUM_THREADS": calls}
        )
    return _COMPILED[key]


def _converted(network: nn.Module, example: tuple[Tensor, ...]) -> tuple[bytes, bytes]:
    """Topology (XML) and weights of the network as OpenVINO stores them."""
    ov = _openvino()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of branches on shapes, which are those of the example
        network(*example)  # what is computed once and kept is not part of the graph
        traced = torch.jit.trace(network, example, check_trace=False)
        model = ov.convert_model(traced, input=[tuple(x.shape) for x in example])
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(model, f"{folder}/network.xml", compress_to_fp16=False)
        return Path(folder, "network.xml").read_bytes(), Path(folder, "network.bin").read_bytes()


def _key(network: nn.Module, example: tuple[Tensor, ...]) -> str:
    """Changes with the weights, the shapes, the code of the network's modules and the versions of who converts it."""
    digest = hashlib.sha256(f"{__version__} {_openvino_version()} {torch.__version__}".encode())
    for module in sorted({type(m).__module__ for m in network.modules()}):
        if module.startswith("nphm_track"):
            digest.update(inspect.getsource(sys.modules[module]).encode())
    digest.update(str(network).encode())
    for key, tensor in network.state_dict().items():
        digest.update(key.encode() + np.ascontiguousarray(tensor.numpy()).tobytes())
    for tensor in example:
        digest.update(str(tuple(tensor.shape)).encode())
    return digest.hexdigest()[:32]


def _keep(path: Path, data: bytes) -> None:
    """Store a converted network; where nothing can be written, it is converted again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(partial, path)
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError:
        log.info("converted networks cannot be kept in %s", path.parent)


def _packed(topology: bytes, weights: bytes) -> bytes:
    """One file: its SHA-256, how long the topology is, topology and weights."""
    body = len(topology).to_bytes(8, "little") + topology + weights
    return hashlib.sha256(body).digest() + body


def _unpacked(data: bytes) -> tuple[bytes, bytes]:
    """Topology and weights. Raises ValueError when the file is not what was written."""
    body = memoryview(data)[32:]
    if hashlib.sha256(body).digest() != data[:32]:
        raise ValueError("a converted network is damaged")
    end = 8 + int.from_bytes(body[:8], "little")
    return bytes(body[8:end]), bytes(body[end:])


def _openvino_version() -> str:
    try:
        return version("openvino")
    except PackageNotFoundError:
        return "without metadata"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
