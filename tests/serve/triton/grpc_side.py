"""The gRPC client's side, run by the Python of `make test-triton`: our own environment has no tritonclient for gRPC.

Arguments: the server's address, a .json of requests [{model, inputs: {name: [type, values]}, output}], an .npz to
write, and any number of config.pbtxt to read by Triton's own definition. A request with `cancel` is taken back after
so many seconds, and nothing of it is written.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import tritonclient.grpc as client
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

TYPES = {"BYTES": object, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32}


def tensor(name, kind, values):
    array = np.array([v.encode() for v in values] if kind == "BYTES" else values, TYPES[kind])
    found = client.InferInput(name, array.shape, kind)
    found.set_data_from_numpy(array)
    return found


def main():
    address, requests, out, *configs = sys.argv[1:]
    for path in configs:
        with open(path, encoding="utf-8") as file:
            text_format.Parse(file.read(), model_config_pb2.ModelConfig())
    server, found = client.InferenceServerClient(address), {}
    with open(requests, encoding="utf-8") as file:
        asked = json.load(file)
    for index, one in enumerate(asked):
        inputs = [tensor(name, *value) for name, value in one["inputs"].items()]
        if one.get("cancel"):
            sent = server.async_infer(one["model"], inputs, lambda result, error: None)
            time.sleep(one["cancel"])
            sent.cancel()
            continue
        try:
            found[str(index)] = server.infer(one["model"], inputs).as_numpy(one["output"])
        except client.InferenceServerException as error:
            found[str(index)] = np.array(f"{error.status()}: {error.message()}")
    np.savez(out, **found)
    server.close()


if __name__ == "__main__":
    main()
