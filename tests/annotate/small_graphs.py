"""Writes golden/dwpose: ONNX graphs with the inputs and outputs of DWPose and its YOLOX, small and of random
weights. `python -m tests.annotate.small_graphs` needs the package onnx, which the tests do not.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).with_name("golden") / "dwpose"
POSE, BOXES = (64, 48), (64, 96)  # (height, width) of what each sees
CLASSES = 2


def main() -> None:
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    normal = lambda name, scale, *shape: numpy_helper.from_array(
        (scale * draw.normal(size=shape)).astype(np.float32), name
    )
    image = lambda size: helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *size])
    out = lambda *names: [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]

    def write(name: str, nodes: list, size: tuple[int, int], outputs: list, weights: list) -> None:
        graph = helper.make_graph(nodes, name, [image(size)], outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (HERE / name).write_bytes(model.SerializeToString())

    # each axis of the picture's mean along the other one, two bins a pixel
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["row"], axes=[2], keepdims=0),
        helper.make_node("ReduceMean", ["image"], ["column"], axes=[3], keepdims=0),
        helper.make_node("ConvTranspose", ["row", "wx"], ["x"], strides=[2]),
        helper.make_node("ConvTranspose", ["column", "wy"], ["y"], strides=[2]),
    ]
    weights = [normal("wx", 0.7, 3, 133, 2), normal("wy", 0.7, 3, 133, 2)]
    write("dw-ll_ucoco_384.onnx", nodes, POSE, out("x", "y"), weights)
    # each cell from the mean of its pixels
    nodes = []
    weights = [
        numpy_helper.from_array(np.array([1, 5 + CLASSES, -1]), "flat"),
        numpy_helper.from_array(np.array([4, 1 + CLASSES]), "parts"),
    ]
    for s in (8, 16, 32):
        nodes += [
            helper.make_node("AveragePool", ["image"], [f"mean{s}"], kernel_shape=[s, s], strides=[s, s]),
            helper.make_node("Conv", [f"mean{s}", f"w{s}"], [f"cells{s}"]),
            helper.make_node("Reshape", [f"cells{s}", "flat"], [f"flat{s}"]),
        ]
        weights.append(normal(f"w{s}", 0.006, 5 + CLASSES, 3, 1, 1))
    nodes += [
        helper.make_node("Concat", [f"flat{s}" for s in (8, 16, 32)], ["all"], axis=2),
        helper.make_node("Split", ["all", "parts"], ["places", "logits"], axis=1),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("Concat", ["places", "scores"], ["found"], axis=1),
        helper.make_node("Transpose", ["found"], ["boxes"], perm=[0, 2, 1]),
    ]
    write("yolox_l.onnx", nodes, BOXES, out("boxes"), weights)


if __name__ == "__main__":
    main()
