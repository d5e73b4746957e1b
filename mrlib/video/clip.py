"""CLIP as an encoder of videos and sentences, as for the published features of QVHighlights.

Pictures, one for two seconds, come from `mrlib.video.read` at the side of the model (224 for ViT-B/32) and are
normalised here: the image processor of transformers would resize by another filter. The features of a picture are the
projected ones. The tokens of a sentence are the text tower's states after the final layer norm, from [SOT] to [EOT],
and its vector is the projection of the state at [EOT]. Nothing is divided by its norm; the readers of features do that.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mrlib.arguments import require, shown
from mrlib.parallel import find_device
from mrlib.video import pretrained
from mrlib.video.read import Progress, pictures

CLIP_S = 2.0  # seconds per picture, as published
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of R, G, B in CLIP's training pictures, from 0 to 1
STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 32  # pictures; larger batches are no faster on a CPU


class Clip:
    """CLIP from a folder or a hub name; implements `mrlib.video.encode.Encoder`.

    recipe  tells encoders apart: models with equal weights have equal recipes, wherever their files are
    notes   what else a record may keep, and what does not tell encoders apart: the name and the type of numbers
    """

    def __init__(
        self,
        name: str | os.PathLike,
        device: str = "auto",
        dtype: torch.dtype | None = None,
    ):
        """Load a model.

        name    a folder, or a name on the Hugging Face hub, see `mrlib.video.pretrained`
        device  "auto": CUDA if available, see `mrlib.parallel.find_device`
        dtype   of the products in the vision tower, float32 or bfloat16; None: bfloat16 where the processor has
                instructions for it. Sums, norms, the projection and the text tower are float32 in any case
        raises  as `mrlib.video.pretrained.load`
        """
        require(dtype in (None, torch.float32, torch.bfloat16), "dtype", dtype, "torch.float32, torch.bfloat16 or None")
        self._device = find_device(device)
        self._dtype = dtype or _fast_dtype(self._device)
        self._model, self._tokenizer = pretrained.load(os.fspath(name))
        config = self._model.config
        self.recipe = {
            "encoder": "clip",
            "clip_s": CLIP_S,
            "width": config.projection_dim,
            "joint": config.projection_dim,
            "words": config.text_config.hidden_size,
            "side": config.vision_config.image_size,
            "weights": pretrained.digest(self._model),
        }
        self.notes = {"name": Path(name).name, "dtype": str(self._dtype).removeprefix("torch.")}
        self._model.to(self._device)
        for module in self._model.vision_model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(self._dtype)  # now, not in every batch

    def video(self, path: str | os.PathLike, progress: Progress | None = None) -> Tensor:
        """The features of a video, float32 (n, width), a row for every two seconds, not normalised.

        The video is decoded and encoded in batches, so that memory does not grow with its length.
        """
        frames = (picture for _, picture in pictures(path, CLIP_S, self.recipe["side"], progress))
        rows = [self.frames(np.stack(batch)) for batch in _batches(frames, _BATCH)]
        if not rows:
            raise ValueError(f"{path}: a video without a picture")
        return torch.cat(rows)

    def frames(self, frames: np.ndarray) -> Tensor:
        """The features float32 (B, width) of pictures uint8 (B, side, side, 3), RGB."""
        fast = self._dtype is not torch.float32
        with torch.no_grad():
            with torch.autocast(self._device.type, self._dtype, enabled=fast):
                pooled = self._model.vision_model(pixel_values=self.normalised(frames)).pooler_output
            return self._model.visual_projection(pooled.float()).cpu()

    def normalised(self, frames: np.ndarray) -> Tensor:
        """The numbers that the vision tower reads, float32 (B, 3, side, side), of pictures uint8 (B, side, side, 3)."""
        values = torch.from_numpy(frames).to(self._device).permute(0, 3, 1, 2).float() / 255
        mean, std = (values.new_tensor(each)[:, None, None] for each in (MEAN, STD))
        return (values - mean) / std

    def text(self, query: str) -> tuple[Tensor, Tensor]:
        """The tokens (N, words) of a sentence, from [SOT] to [EOT], and its vector (joint,); float32, not normalised.

        A sentence longer than the model reads, 77 tokens, is cut before [EOT], with a warning.
        """
        ids = torch.tensor([self._token_ids(query)], device=self._device)
        with torch.no_grad():
            tokens = self._model.text_model(input_ids=ids).last_hidden_state[0]
            vector = self._model.text_projection(tokens[-1])  # at [EOT], which is `pooler_output` of transformers
        return tokens.cpu(), vector.cpu()

    def _token_ids(self, query: str) -> list[int]:
        require(isinstance(query, str) and query.strip() != "", "query", query, "a sentence")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"query {shown(query)} is no text in UTF-8: {error.reason}") from None
        ids = self._tokenizer(query, verbose=False)["input_ids"]
        most = self._model.config.text_config.max_position_embeddings
        if len(ids) <= most:
            return ids
        message = f"the sentence {shown(query, 40)} has {len(ids)} tokens, and CLIP reads {most}; the rest is not read"
        warnings.warn(message, stacklevel=3)
        return [*ids[: most - 1], ids[-1]]


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it several times as fast as float32: on AMX, and recent GPUs."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)  # older versions of torch lack it
    return torch.bfloat16 if fast else torch.float32


def _batches(frames: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    frames = iter(frames)
    while batch := list(islice(frames, size)):
        yield batch
