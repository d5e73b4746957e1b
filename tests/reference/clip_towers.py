"""CLIP's two towers in float64, written from the paper's description on the tensors of a safetensors file alone.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021: pre-norm Transformers
with QuickGELU, a causal mask in the text tower, a class token and a norm before the first layer in the vision tower.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


class Towers:
    def __init__(self, folder: Path, *, text_heads: int, vision_heads: int):
        self.weights = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
        self.text_heads, self.vision_heads = text_heads, vision_heads

    def text(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The states (N, D') after the final norm, and the projection (J,) of the last one."""
        w, n = self.weights, len(ids)
        states = w["text_model.embeddings.token_embedding.weight"][ids]
        states = states + w["text_model.embeddings.position_embedding.weight"][:n]
        mask = np.triu(np.full((n, n), -np.inf), 1)
        states = self._norm("text_model.final_layer_norm", self._layers("text_model", states, self.text_heads, mask))
        return states, w["text_projection.weight"] @ states[-1]

    def image(self, values: np.ndarray) -> np.ndarray:
        """The projection (J,) of normalised pixels (3, H, W)."""
        w = self.weights
        kernel = w["vision_model.embeddings.patch_embedding.weight"]  # (D, 3, P, P)
        p, (_, height, width) = kernel.shape[-1], values.shape
        patches = [
            np.einsum("dcij,cij->d", kernel, values[:, y : y + p, x : x + p])
            for y in range(0, height, p)
            for x in range(0, width, p)
        ]
        states = np.stack([w["vision_model.embeddings.class_embedding"], *patches])
        states = states + w["vision_model.embeddings.position_embedding.weight"]
        states = self._layers("vision_model", self._norm("vision_model.pre_layrnorm", states), self.vision_heads, 0)
        return w["visual_projection.weight"] @ self._norm("vision_model.post_layernorm", states[0])

    def _layers(self, tower: str, states: np.ndarray, heads: int, mask) -> np.ndarray:
        count = sum(name.startswith(f"{tower}.encoder.layers.") and "layer_norm1.bias" in name for name in self.weights)
        for prefix in (f"{tower}.encoder.layers.{i}" for i in range(count)):
            normed = self._norm(f"{prefix}.layer_norm1", states)
            q, k, v = (
                self._linear(f"{prefix}.self_attn.{x}_proj", normed).reshape(len(states), heads, -1) for x in "qkv"
            )
            scores = np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(q.shape[-1]) + mask
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed = np.einsum("hnm,mhd->nhd", shares, v).reshape(states.shape)
            states = states + self._linear(f"{prefix}.self_attn.out_proj", mixed)
            hidden = self._linear(f"{prefix}.mlp.fc1", self._norm(f"{prefix}.layer_norm2", states))
            states = states + self._linear(f"{prefix}.mlp.fc2", hidden / (1 + np.exp(-1.702 * hidden)))
        return states

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
