"""Runs an exported model in the programs that people use; by the Python of their own environment.

Usage: client_programs.py MODEL.onnx IMAGES.npy OUT.npz    IMAGES: uint8 RGB [B, H, W, 3]

Writes the embeddings of each program under its name, or what went wrong as a text under NAME.error,
and prints a JSON object of versions.
"""

import json
import sys

import cv2
import insightface
import numpy as np
import onnxruntime
import openvino


def run_onnxruntime(path, image_B3HW, _):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image_B3HW})[0]


def run_opencv(path, image_B3HW, _):
    network = cv2.dnn.readNetFromONNX(path)
    network.setInput(image_B3HW)
    return network.forward()


def run_openvino(path, image_B3HW, _):
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", settings)(image_B3HW)[0]


def run_insightface(path, _, pixels_BHW3):
    model = insightface.model_zoo.get_model(path, providers=["CPUExecutionProvider"])
    return model.get_feat([each[..., ::-1] for each in pixels_BHW3])  # it takes BGR


PROGRAMS = {
    "onnxruntime": run_onnxruntime,
    "opencv": run_opencv,
    "openvino": run_openvino,
    "insightface": run_insightface,
}


def main() -> None:
    path, images, out = sys.argv[1:]
    pixels_BHW3 = np.load(images)
    image_B3HW = (pixels_BHW3.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
    found = {}
    for name, program in PROGRAMS.items():
        try:
            found[name] = np.asarray(program(path, np.ascontiguousarray(image_B3HW), pixels_BHW3))
        except Exception as error:  # noqa: BLE001 - each program has errors of its own
            found[f"{name}.error"] = np.array(f"{type(error).__name__}: {error}")
    np.savez(out, **found)
    modules = (onnxruntime, cv2, openvino, insightface)
    versions = [module.__version__ for module in modules]
    print(json.dumps(dict(zip(PROGRAMS, versions, strict=True))))


if __name__ == "__main__":
    main()
