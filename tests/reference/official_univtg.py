"""A plain second implementation of the released networks of UniVTG and MATR, with the names of their checkpoints.

It uses nothing of mrlib, so that `load_official` can be compared with it: inputs are padded sample by sample, attention
is `nn.MultiheadAttention`, losses are summed in loops.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPT = {
    "hidden_dim": 16,
    "dim_feedforward": 24,
    "enc_layers": 2,
    "dec_layers": 2,
    "nheads": 4,
    "n_input_proj": 2,
    "v_feat_dim": 9,  # as stored, with the two of TEF
    "t_feat_dim": 6,
    "ctx_mode": "video_tef",
    "use_txt_pos": False,
    "pre_norm": False,
    "num_queries": 10,
    "input_dropout": 0.5,
    "dropout": 0.1,
    "droppath": 0.1,
    "max_q_l": 12,
    "max_v_l": 75,
    "span_loss_type": "l1",
    "position_embedding": "sine",
    "clip_length": 2,
    "eos_coef": 0.1,
    "temperature": 0.07,
    "device": 0,
    "lr_warmup": [10, 200],
    "v_feat_dirs": ["clip"],
    "exp_id": None,
}


def make_opt(**changes) -> argparse.Namespace:
    """Options of a small network."""
    return argparse.Namespace(**(OPT | changes))


class ProjectionLayer(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(inputs)
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(inputs, width))

    def forward(self, x):
        return self.net(self.LayerNorm(x))


class EncoderLayer(nn.Module):
    def __init__(self, opt, activation):
        super().__init__()
        d, self.activation, self.pre_norm = opt.hidden_dim, activation, opt.pre_norm
        self.self_attn = nn.MultiheadAttention(d, opt.nheads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, opt.dim_feedforward), nn.Linear(opt.dim_feedforward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x, positions, mask):
        y = self.norm1(x) if self.pre_norm else x
        x = x + self.self_attn(y + positions, y + positions, y, key_padding_mask=~mask)[0]
        if not self.pre_norm:
            x = self.norm1(x)
        y = self.norm2(x) if self.pre_norm else x
        x = x + self.linear2(self.activation(self.linear1(y)))
        return x if self.pre_norm else self.norm2(x)


class DecoderLayer(nn.Module):
    def __init__(self, opt):
        super().__init__()
        d = opt.hidden_dim
        self.self_attn = nn.MultiheadAttention(d, opt.nheads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(d, opt.nheads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, opt.dim_feedforward), nn.Linear(opt.dim_feedforward, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x, query_positions, memory, positions, mask):
        q = x + query_positions
        x = self.norm1(x + self.self_attn(q, q, x)[0])
        keys = memory + positions
        attended = self.multihead_attn(x + query_positions, keys, memory, key_padding_mask=~mask)[0]
        x = self.norm2(x + attended)
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class Convolutions(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        sizes = [(inputs, width), (width, width), (width, outputs)]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in sizes)

    def forward(self, x):
        first, second, third = self.layers
        return third(second(first(x.transpose(1, 2)).relu()).relu()).transpose(1, 2)


class Linears(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, n) for n in (width, width, 2))


def holder(**parts: nn.Module) -> nn.Module:
    """A module that only holds other modules under these names."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class Projected(nn.Module):
    """The input projections, which all releases share."""

    def __init__(self, opt: argparse.Namespace):
        super().__init__()
        self.opt, d = opt, opt.hidden_dim
        self.input_vid_proj, self.input_txt_proj = (
            nn.Sequential(*(ProjectionLayer(d if i else inputs, d) for i in range(opt.n_input_proj)))
            for inputs in (opt.v_feat_dim, opt.t_feat_dim)
        )

    def project(self, targets: list[Tensor], queries: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clips (B, T, d) and words (B, N, d), padded to the longest, and their masks, bool (B, T) and (B, N).

        targets (n_b, D) without TEF, queries (m_b, D')
        """
        opt, n = self.opt, [len(target) for target in targets]
        if "tef" in opt.ctx_mode:
            ends = [torch.tensor([[i / k, (i + 1) / k] for i in range(k)]) for k in n]
            targets = [torch.cat(both, 1) for both in zip(targets, ends, strict=True)]
        video, text = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (targets, queries))
        mask = torch.arange(video.shape[1]) < torch.tensor(n)[:, None]
        text_mask = torch.arange(text.shape[1]) < torch.tensor([len(q) for q in queries])[:, None]
        for i, (video_layer, text_layer) in enumerate(zip(self.input_vid_proj, self.input_txt_proj, strict=True)):
            last = i == opt.n_input_proj - 1
            video, text = (x if last else x.relu() for x in (video_layer(video), text_layer(text)))
        return video, text, mask, text_mask

    def places(self, text: Tensor) -> Tensor:
        """Learned positions of words (B, N, d), or 0."""
        if not self.opt.use_txt_pos:
            return torch.zeros_like(text)
        table = self.txt_position_embed.position_embeddings.weight[: text.shape[1]]
        return self.txt_position_embed.LayerNorm(text + table)


class Official(Projected):
    """Either release; `paper` is "univtg" or "matr"."""

    def __init__(self, opt: argparse.Namespace, paper: str, *, moment_queries: int = 1, wide_heads: bool = False):
        """wide_heads: the heads also read the decoder, as MATR's code prepares and does not use."""
        super().__init__(opt)
        d, self.paper, self.wide_heads = opt.hidden_dim, paper, wide_heads
        self.token_type_embeddings = nn.Embedding(2, d)
        self.txt_position_embed = holder(position_embeddings=nn.Embedding(opt.max_q_l, d), LayerNorm=nn.LayerNorm(d))
        activation = F.relu if paper == "matr" else F.gelu
        encoder = holder(layers=nn.ModuleList(EncoderLayer(opt, activation) for _ in range(opt.enc_layers)))
        if opt.pre_norm:
            encoder.norm = nn.LayerNorm(d)
        self.transformer = holder(encoder=encoder)
        self.weightedpool = nn.Module()
        self.weightedpool.weight = nn.Parameter(torch.zeros(d, 1))
        if paper == "matr":
            layers = nn.ModuleList(DecoderLayer(opt) for _ in range(opt.dec_layers))
            self.transformer.decoder = holder(layers=layers, norm=nn.LayerNorm(d))
            self.transformer.vid_proj = nn.Conv1d(d, 10, 1)
            self.query_embed = nn.Embedding(moment_queries, d)
            self.span_embed, self.class_embed = Linears(d), nn.Linear(d, 2)
            inputs = 2 * d if wide_heads else d
            self.span_embed_c, self.class_embed_c = Convolutions(inputs, d, 2), Convolutions(inputs, d, 1)
        else:
            self.span_embed, self.class_embed = Convolutions(d, d, 2), Convolutions(d, d, 1)

    def forward(self, targets: list[Tensor], queries: list[Tensor]) -> dict[str, Tensor]:
        """The outputs for a batch as in `project`, padded to the longest target.

        prob (B, T), spans (B, T, 2), saliency (B, T), mask bool (B, T), times (B, T); for the contrastive losses clips
        (B, T, d) and whole (B, d), the vector of the query
        """
        opt, n = self.opt, [len(target) for target in targets]
        video, text, video_mask, text_mask = self.project(targets, queries)
        video, text = video + self.token_type_embeddings.weight[1], text + self.token_type_embeddings.weight[0]
        positions = torch.stack([sine(k, video.shape[1], opt.hidden_dim) for k in n])
        x, all_positions = torch.cat([video, text], 1), torch.cat([positions, self.places(text)], 1)
        for layer in self.transformer.encoder.layers:
            x = layer(x, all_positions, torch.cat([video_mask, text_mask], 1))
        if opt.pre_norm:
            x = self.transformer.encoder.norm(x)
        memory = x[:, : video.shape[1]]
        times = torch.tensor([[(i + opt.clip_length / 2) / k for i in range(max(n))] for k in n])
        if self.paper == "matr":
            if self.wide_heads:
                memory = torch.cat([memory, self._decoded(memory, positions, video_mask)], -1)
            prob, offsets = self.class_embed_c(memory).sigmoid(), self.span_embed_c(memory)
        else:
            prob = self.class_embed(memory).sigmoid()
            offsets = self.span_embed(memory).sigmoid() * torch.tensor([-1.0, 1.0])
        weights = (text @ self.weightedpool.weight)[..., 0] - 1e30 * (~text_mask).float()
        whole = torch.einsum("bn,bnd->bd", weights.softmax(1), text)
        saliency = F.cosine_similarity(video, whole[:, None], dim=-1) + (video_mask + 1e-45).log()
        out = {"prob": prob[..., 0], "spans": times[..., None] + offsets, "saliency": saliency}
        return out | {"mask": video_mask, "times": times, "clips": video, "whole": whole}

    def _decoded(self, memory: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        query_positions = self.query_embed.weight[None].repeat(len(memory), 1, 1)
        x = torch.zeros_like(query_positions)
        for layer in self.transformer.decoder.layers:
            x = layer(x, query_positions, memory, positions, mask)
        return self.transformer.decoder.norm(x).mean(1, keepdim=True).repeat(1, memory.shape[1], 1)


def sine(n: int, length: int, width: int) -> Tensor:
    """Sine positions of n clips, padded to a length with that of the last clip."""
    rows = []
    for i in range(length):
        p = 2 * math.pi * min(i + 1, n) / (n + 1e-6)
        angles = [p / 10000 ** (2 * m / width) for m in range(width // 2)]
        rows.append([f(a) for a in angles for f in (math.sin, math.cos)])
    return torch.tensor(rows)


def random_network(opt: argparse.Namespace, paper: str, seed: int = 0, **parts) -> Official:
    """A network with random values in all parameters."""
    torch.manual_seed(seed)
    network = Official(opt, paper, **parts).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 1.5 / math.sqrt(parameter[0].numel())
            centre = float("norm" in name.lower() and name.endswith("weight"))
            parameter.copy_(centre + scale * torch.randn_like(parameter))
    return network


def save(network: Official, path: Path, prefix: str = "", **changes) -> Path:
    """Write the checkpoint that the official training script writes."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 80)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    content = {
        "model": {prefix + name: tensor for name, tensor in network.state_dict().items()},
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 4,
        "opt": network.opt,
    }
    torch.save(content | changes, path)
    return path


def losses(out: dict[str, Tensor], windows: list[tuple[float, float]], scores: Tensor, chosen: list[int]) -> dict:
    """UniVTG's loss terms without their weights, for one window per sample.

    windows  start and end as fractions of the clips
    scores   (B, T) saliency labels
    chosen   the relevant clip of each sample
    """
    B, T = out["mask"].shape
    fg, l1, iou, inside = 0.0, 0.0, 0.0, 0
    for b, (start, end) in enumerate(windows):
        for i in range(int(out["mask"][b].sum())):
            t, p = out["times"][b, i], out["prob"][b, i]
            if not start <= t <= end:
                fg = fg - 0.1 * (1 - p).log()
                continue
            inside, fg = inside + 1, fg - p.log()
            s, e = out["spans"][b, i]
            for difference in ((s - start).abs(), (e - end).abs()):
                l1 = l1 + (difference**2 / 2 if difference < 1 else difference - 0.5)
            common = (torch.minimum(e, torch.tensor(end)) - torch.maximum(s, torch.tensor(start))).clamp(min=0)
            union = (e - s) + (end - start) - common
            hull = torch.maximum(e, torch.tensor(end)) - torch.minimum(s, torch.tensor(start))
            iou = iou + 1 - (common / union - (hull - union) / hull)
    cosines = torch.stack([F.cosine_similarity(out["clips"][b, chosen[b]], out["whole"], dim=-1) for b in range(B)])
    inter = -sum(torch.log_softmax(cosines / 0.07, dim)[b, b] for b in range(B) for dim in (0, 1)) / B
    intra = 0.0
    for b, i in enumerate(chosen):
        logits = F.cosine_similarity(out["clips"], out["whole"][:, None], dim=-1) / 0.07
        compared = (scores < scores[torch.arange(B), chosen][:, None]) & out["mask"]
        compared[torch.arange(B), chosen] = True
        row = logits[b][compared[b]]
        column = logits[:, i][compared[:, i]]
        intra = intra - (logits[b, i] - row.logsumexp(0) + logits[b, i] - column.logsumexp(0)) / B
    return {"fg": fg / out["mask"].sum(), "l1": l1 / inside, "iou": iou / inside, "inter": inter, "intra": intra}


def saved(
    folder: Path,
    paper: str = "univtg",
    prefix: str = "",
    parts: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    **options,
) -> tuple[Official, Path]:
    """A small network with random parameters, and the file of its checkpoint."""
    network = random_network(make_opt(**options), paper, **(parts or {}))
    return network, save(network, folder / "model.ckpt", prefix, **(changes or {}))
