"""One worker: loads the model, answers requests. Two lines in it are for pagemerge.

A request and an answer are a line of JSON each.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pagemerge
from demo.minilm import MiniLM, find_model

PAGE = 4096


def main() -> None:
    """Serve until stdin closes."""
    model = MiniLM(find_model())
    say({"pid": os.getpid(), "model_bytes": model.buffer.nbytes})
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "merge":
                pagemerge.enable()
                say("on")
            case "embed":
                say(model.embed(request["text"]).tolist())
            case "digest":
                say(model.digest())
            case "train":
                say({"pages": train(model, request["layers"])})


def train(model: MiniLM, layers: list[int]) -> int:
    """Change some layers' matrices in place; how many pages that writes to."""
    touched: set[int] = set()
    for name, array in model.weights.items():
        if array.ndim == 2 and any(name.startswith(f"encoder.layer.{n}.") for n in layers):
            array *= 1.01
            start = array.ctypes.data
            touched.update(range(start // PAGE, (start + array.nbytes - 1) // PAGE + 1))
    return len(touched)


def say(value: Any) -> None:
    """Answer."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
