"""A plain second implementation of the released CG-DETR, with the names of its checkpoints.

The parts that it shares with QD-DETR are those of `official_detr`; its attention goes head by head.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference import official_detr
from tests.reference.official_detr import Layer, logit, run
from tests.reference.official_univtg import ProjectionLayer, holder, sine

OPT = official_detr.OPT | {
    "nheads": 8,
    "enc_layers": 3,
    "t2v_layers": 2,
    "dummy_layers": 2,
    "sent_layers": 1,
    "moment_layers": 1,
    "num_dummies": 3,
    "total_prompts": 4,
    "num_prompts": 1,
}


def make_opt(**changes) -> argparse.Namespace:
    """Options of a small network."""
    return argparse.Namespace(**(OPT | changes))


class CrossLayer(nn.Module):
    """From words and dummies to clips; the attention has an output projection only."""

    def __init__(self, opt):
        super().__init__()
        d, self.opt = opt.hidden_dim, opt
        self.self_attn = holder(out_proj=nn.Linear(d, d))
        self.linear1, self.linear2 = nn.Linear(d, opt.dim_feedforward), nn.Linear(opt.dim_feedforward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.activation = nn.PReLU()

    def forward(self, x, positions, text, text_positions, mask, text_mask) -> tuple[Tensor, Tensor]:
        """The clips, and the weights (B, T, P + N) averaged over the heads."""
        q, k, d = x + positions, text + text_positions, self.opt.hidden_dim // self.opt.nheads
        hidden = ((~mask)[:, :, None] & (~text_mask)[:, None]).repeat(self.opt.nheads, 1, 1)
        attended, weights = torch.zeros_like(x), torch.zeros(*x.shape[:2], text.shape[1])
        for b in range(len(x)):
            for h in range(self.opt.nheads):
                part = slice(h * d, (h + 1) * d)
                scores = q[b, :, part] @ k[b, :, part].T / math.sqrt(d)
                scores = scores.masked_fill(hidden[b * self.opt.nheads + h] | ~text_mask[b], -torch.inf)
                a = scores.softmax(1)
                attended[b, :, part] = a[:, self.opt.num_dummies :] @ text[b, self.opt.num_dummies :, part]
                weights[b] += a / self.opt.nheads
        return self.after(x + self.self_attn.out_proj(attended)), weights

    def after(self, z):
        return self.norm2(z + self.linear2(self.activation(self.linear1(self.norm1(z)))))


class Official(official_detr.Official):
    """Inference alone; the parts that only training reads are there for their names."""

    def __init__(self, opt: argparse.Namespace):
        super().__init__(opt, "qd_detr")
        d = opt.hidden_dim

        def stack(layer, count):
            return holder(layers=nn.ModuleList(layer() for _ in range(count)))

        def encoder():
            return Layer(opt, prelu=True)

        self.transformer.t2v_encoder = stack(lambda: CrossLayer(opt), opt.t2v_layers)
        self.transformer.mcls_encoder = stack(encoder, opt.moment_layers)
        self.txtproj_encoder, self.scls_encoder = stack(encoder, opt.dummy_layers), stack(encoder, opt.sent_layers)
        self.token_type_embeddings, self.txt_proj_linear = nn.Embedding(2, d), ProjectionLayer(opt.t_feat_dim, d)
        self.global_rep_token, self.global_rep_pos = (nn.Parameter(torch.zeros(n, d)) for n in (opt.total_prompts, 1))
        self.dummy_rep_token, self.dummy_rep_pos = (nn.Parameter(torch.zeros(opt.num_dummies, d)) for _ in range(2))
        for name in ("moment_rep_token", "moment_rep_pos", "sent_rep_token", "sent_rep_pos"):
            setattr(self, name, nn.Parameter(torch.zeros(d)))

    def forward(self, targets: list[Tensor], queries: list[Tensor]) -> dict[str, Tensor]:
        """logits, spans (L, B, K, 2) after every decoder layer, saliency (B, T), mask bool (B, T)."""
        opt, n, B = self.opt, [len(target) for target in targets], len(targets)
        video, text, mask, text_mask = self.project(targets, queries)
        video, text = video + self.token_type_embeddings.weight[1], text + self.token_type_embeddings.weight[0]
        positions = torch.stack([sine(k, video.shape[1], opt.hidden_dim) for k in n])
        text, places, text_mask = self._with_dummies(text, text_mask)
        x, weights = video, 0
        for layer in self.transformer.t2v_encoder.layers:
            x, a = layer(x, positions, text, places, mask, text_mask)
            weights = weights + a[:, :, opt.num_dummies :].sum(2) / opt.t2v_layers
        token = torch.stack([self._token(video[b, :k], weights[b, :k]) for b, k in enumerate(n)])[:, None]
        x = torch.cat([token, x], 1)
        positions_ = torch.cat([self.global_rep_pos.repeat(B, 1, 1), positions], 1)
        for layer in self.transformer.encoder.layers:
            x = layer.encode(x, positions_, torch.cat([torch.ones(B, 1, dtype=torch.bool), mask], 1))
        memory = x[:, 1:] + x[:, :1]
        saliency = (self.saliency_proj1(memory) * self.saliency_proj2(x[:, :1])).sum(2) / math.sqrt(opt.hidden_dim)
        samples = [self._spans(memory[b, :k], positions[b, :k]) for b, k in enumerate(n)]
        states, references = (torch.stack(parts, 1) for parts in zip(*samples, strict=True))
        spans = (run(self.span_embed, states) + logit(references)).sigmoid()
        return {"logits": self.class_embed(states), "spans": spans, "saliency": saliency, "mask": mask}

    def _with_dummies(self, text, text_mask):
        """Dummies that have read the words before the words, their positions, and the mask of both."""
        B, P = len(text), self.opt.num_dummies
        y = torch.cat([self.dummy_rep_token.repeat(B, 1, 1), text], 1)
        places = torch.cat([self.dummy_rep_pos.repeat(B, 1, 1), torch.zeros_like(text)], 1)
        text_mask = torch.cat([torch.ones(B, P, dtype=torch.bool), text_mask], 1)
        for layer in self.txtproj_encoder.layers:
            y = layer.encode(y, places, text_mask)
        return torch.cat([y[:, :P], text], 1), places, text_mask

    def _token(self, clips, weights):
        """The saliency token of one sample (d,); clips (n, d), weights (n,).

        Of equal prompts, which a video of one clip has, torch.topk takes any; here it is the first.
        """
        mean = clips.mean(0)
        similar = (F.normalize(clips - mean, dim=1) @ F.normalize(self.global_rep_token, dim=1).T).softmax(1)
        weights = weights / weights.sum() * len(weights)
        order = (similar * weights[:, None]).mean(0).sort(descending=True, stable=True)
        best, which = (x[: self.opt.num_prompts] for x in order)
        x = mean + (best[:, None] * self.global_rep_token[which]).sum(0)
        for layer in self.transformer.t2v_encoder.layers:
            x = layer.after(x + layer.self_attn.out_proj.bias)  # attention without keys gives its bias
        return x
