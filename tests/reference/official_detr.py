"""A plain second implementation of the released Moment-DETR, QD-DETR and TD-DETR, with the names of their checkpoints.

It uses nothing of mrlib, so that `load_official` can be compared with it: attention is `nn.MultiheadAttention`, the
decoder of spans goes sample by sample and head by head, losses are summed in loops, matching is exhaustive search.
"""

from __future__ import annotations

import argparse
import math
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.official_univtg import Projected, ProjectionLayer, holder, sine

OPT = {
    "hidden_dim": 16,
    "dim_feedforward": 24,
    "enc_layers": 2,
    "dec_layers": 2,
    "nheads": 4,
    "n_input_proj": 2,
    "v_feat_dim": 9,  # as stored, with the two of TEF
    "t_feat_dim": 6,
    "a_feat_dim": None,
    "ctx_mode": "video_tef",
    "use_txt_pos": False,
    "pre_norm": False,
    "num_queries": 5,
    "input_dropout": 0.5,
    "dropout": 0.1,
    "max_q_l": 12,
    "max_v_l": 75,
    "span_loss_type": "l1",
    "beta": 0.7,  # of TD-DETR
    "position_embedding": "sine",
    "aux_loss": True,
    "contrastive_align_loss": False,
    "contrastive_hdim": 8,
    "contrastive_align_loss_coef": 0.02,
    "temperature": 0.07,
    "device": "cpu",
    "v_feat_dirs": ["clip"],
    "exp_id": None,
}


def make_opt(**changes) -> argparse.Namespace:
    """Options of a small network."""
    return argparse.Namespace(**(OPT | changes))


def mlp(width: int, outputs: int, layers: int) -> nn.Module:
    sizes = [width] * layers + [outputs]
    return holder(layers=nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)))


def run(module: nn.Module, x: Tensor) -> Tensor:
    *inner, last = module.layers
    for layer in inner:
        x = layer(x).clamp(min=0)
    return last(x)


class Layer(nn.Module):
    """An encoder layer, a text-to-video layer, or a decoder layer of Moment-DETR, which have the same parts."""

    def __init__(self, opt, *, prelu: bool, cross: bool = False, flow: bool = False):
        super().__init__()
        d, self.opt = opt.hidden_dim, opt
        self.self_attn = nn.MultiheadAttention(d, opt.nheads, batch_first=True)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(d, opt.nheads, batch_first=True)
            self.norm3 = nn.LayerNorm(d)
        if flow:
            self.self_attn_flow = nn.MultiheadAttention(d, opt.nheads, batch_first=True)
            self.flow_proj = nn.Sequential(ProjectionLayer(d, d), ProjectionLayer(d, d))
        self.linear1, self.linear2 = nn.Linear(d, opt.dim_feedforward), nn.Linear(opt.dim_feedforward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.activation = nn.PReLU() if prelu else nn.ReLU()

    def feed_forward(self, x):
        return self.linear2(self.activation(self.linear1(x)))

    def encode(self, x, positions, mask):
        before = self.opt.pre_norm
        y = self.norm1(x) if before else x
        x = x + self.self_attn(y + positions, y + positions, y, key_padding_mask=~mask)[0]
        if before:
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x)
        return self.norm2(x + self.feed_forward(x))

    def text_to_video(self, x, positions, text, text_positions, mask, text_mask, start=None):
        """Clips attend to words, with the mask that lands on other samples; with a start token, TD-DETR's dynamics."""
        both = (~mask)[:, :, None] & (~text_mask)[:, None]  # (B, T, N), padded clips times padded words
        hidden = both.repeat(self.opt.nheads, 1, 1)
        keys = text + text_positions
        a = self.self_attn(x + positions, keys, text, attn_mask=hidden, key_padding_mask=~text_mask)[0]
        z = x + a
        if start is not None:
            z = (
                self.opt.beta * x
                + (1 - self.opt.beta) * self.flow(x + positions, start, keys, text, mask, text_mask)
                + a
            )
        return self.norm2(z + self.feed_forward(self.norm1(z)))

    def flow(self, x, start, keys, text, mask, text_mask):
        """The changes between clips attend to words; the mask of padded clips leaves out the first clip."""
        changes = torch.zeros_like(x)
        for t in range(x.shape[1]):
            changes[:, t] = x[:, t] - (x[:, t - 1] if t else start)
        for block in self.flow_proj:
            changes = block(changes).relu()
        padded = ~mask
        padded[:, 0] = False
        hidden = (padded[:, :, None] & (~text_mask)[:, None]).repeat(self.opt.nheads, 1, 1)
        return self.self_attn_flow(changes, keys, text, attn_mask=hidden, key_padding_mask=~text_mask)[0]

    def decode(self, x, query_positions, memory, positions, mask):
        if self.opt.pre_norm:
            y = self.norm1(x)
            x = x + self.self_attn(y + query_positions, y + query_positions, y)[0]
            y = self.norm2(x)
            x = x + self._cross(y + query_positions, memory, positions, mask)
            return x + self.feed_forward(self.norm3(x))
        q = x + query_positions
        x = self.norm1(x + self.self_attn(q, q, x)[0])
        x = self.norm2(x + self._cross(x + query_positions, memory, positions, mask))
        return self.norm3(x + self.feed_forward(x))

    def _cross(self, q, memory, positions, mask):
        return self.multihead_attn(q, memory + positions, memory, key_padding_mask=~mask)[0]


class SpanLayer(nn.Module):
    """A decoder layer of QD-DETR, for one sample."""

    def __init__(self, opt, first: bool):
        super().__init__()
        d, self.opt, self.first = opt.hidden_dim, opt, first
        names = [f"sa_{x}_proj" for x in ("qcontent", "qpos", "kcontent", "kpos", "v")]
        names += [f"ca_{x}_proj" for x in ("qcontent", "kcontent", "kpos", "v", "qpos_sine")] + ["ca_qpos_proj"] * first
        for name in names:
            self.add_module(name, nn.Linear(d, d))
        self.self_attn, self.cross_attn = (holder(out_proj=nn.Linear(d, d)) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(d, opt.dim_feedforward), nn.Linear(opt.dim_feedforward, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.activation = nn.PReLU()

    def heads(self, x):
        return x.split(self.opt.hidden_dim // self.opt.nheads, dim=-1)

    def attention(self, queries, keys, values):
        """Attention head by head, of lists of (K, e), (S, e), (S, f)."""
        heads = []
        for q, k, v in zip(queries, keys, values, strict=True):
            heads.append(((q @ k.T) / math.sqrt(q.shape[1])).softmax(1) @ v)
        return torch.cat(heads, 1)

    def forward(self, x, p, u, memory, positions):
        """x, p, u (K, d); memory, positions (n, d)."""
        x = self.attend(x, p, u, memory, positions)
        return self.norm3(x + self.linear2(self.activation(self.linear1(x))))

    def attend(self, x, p, u, memory, positions):
        q, k = self.sa_qcontent_proj(x) + self.sa_qpos_proj(p), self.sa_kcontent_proj(x) + self.sa_kpos_proj(p)
        x = self.norm1(
            x + self.self_attn.out_proj(self.attention(self.heads(q), self.heads(k), self.heads(self.sa_v_proj(x))))
        )
        q, k, place = self.ca_qcontent_proj(x), self.ca_kcontent_proj(memory), self.ca_kpos_proj(positions)
        if self.first:
            q, k = q + self.ca_qpos_proj(p), k + place
        pairs = zip(self.heads(q), self.heads(self.ca_qpos_sine_proj(u)), strict=True)
        queries = [torch.cat(pair, 1) for pair in pairs]
        keys = [torch.cat(pair, 1) for pair in zip(self.heads(k), self.heads(place), strict=True)]
        return self.norm2(
            x + self.cross_attn.out_proj(self.attention(queries, keys, self.heads(self.ca_v_proj(memory))))
        )


def logit(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))


def span_sines(span: Tensor, width: int) -> Tensor:
    """The sines of one span, centre first, (width,)."""
    half, row = width // 2, []
    for value in span:
        for k in range(half):
            angle = 2 * math.pi * value / 10000 ** (2 * (k // 2) / half)
            row.append(angle.cos() if k % 2 else angle.sin())
    return torch.stack(row)


class Official(Projected):
    """Any of the releases; `paper` is "moment_detr", "qd_detr" or "td_detr"."""

    def __init__(self, opt: argparse.Namespace, paper: str):
        super().__init__(opt)
        d, self.paper = opt.hidden_dim, paper
        qd, td = paper != "moment_detr", paper == "td_detr"
        self.txt_position_embed = holder(position_embeddings=nn.Embedding(opt.max_q_l, d), LayerNorm=nn.LayerNorm(d))
        encoder = holder(layers=nn.ModuleList(Layer(opt, prelu=qd) for _ in range(opt.enc_layers)))
        if opt.pre_norm:
            encoder.norm = nn.LayerNorm(d)
        self.transformer = holder(encoder=encoder)
        if qd:
            layers = nn.ModuleList(Layer(opt, prelu=True, flow=td) for _ in range(opt.enc_layers))
            self.transformer.t2v_encoder = holder(layers=layers)
            layers = nn.ModuleList(SpanLayer(opt, i == 0) for i in range(opt.dec_layers))
            self.transformer.decoder = holder(
                layers=layers,
                norm=nn.LayerNorm(d),
                query_scale=mlp(d, d, 2),
                ref_point_head=mlp(d, d, 2),
                ref_anchor_head=mlp(d, 1, 2),
                bbox_embed=mlp(d, 2, 3),
            )
            self.query_embed = nn.Embedding(opt.num_queries, 2)
            if td:
                self.video_embed = nn.Embedding(1, d)
            self.saliency_proj1, self.saliency_proj2 = nn.Linear(d, d), nn.Linear(d, d)
            self.global_rep_token, self.global_rep_pos = nn.Parameter(torch.randn(d)), nn.Parameter(torch.randn(d))
        else:
            layers = nn.ModuleList(Layer(opt, prelu=False, cross=True) for _ in range(opt.dec_layers))
            self.transformer.decoder = holder(layers=layers, norm=nn.LayerNorm(d))
            self.query_embed, self.saliency_proj = nn.Embedding(opt.num_queries, d), nn.Linear(d, 1)
        self.span_embed, self.class_embed = mlp(d, 2, 3), nn.Linear(d, 2)
        if opt.contrastive_align_loss:
            for name in ("query", "txt", "vid"):
                self.add_module(f"contrastive_align_projection_{name}", nn.Linear(d, opt.contrastive_hdim))

    def forward(self, targets: list[Tensor], queries: list[Tensor]) -> dict[str, Tensor]:
        """The outputs for a batch as in `project`.

        logits, spans (L, B, K, 2) after every decoder layer, saliency (B, T), mask bool (B, T), and, except for
        Moment-DETR, `foreign` (B, T), the saliency for the query of the next sample
        """
        opt, n = self.opt, [len(target) for target in targets]
        video, text, mask, text_mask = self.project(targets, queries)
        positions = torch.stack([sine(k, video.shape[1], opt.hidden_dim) for k in n])
        places = self.places(text)
        if self.paper == "moment_detr":
            memory, saliency = self._joint(video, positions, mask, text, places, text_mask)
            moment_queries = self.query_embed.weight[None].repeat(len(n), 1, 1)
            x, states, references = torch.zeros_like(moment_queries), [], None
            all_positions, all_masks = torch.cat([positions, places], 1), torch.cat([mask, text_mask], 1)
            for layer in self.transformer.decoder.layers:
                x = layer.decode(x, moment_queries, memory, all_positions, all_masks)
                states.append(self.transformer.decoder.norm(x))
            states = torch.stack(states)
            out = {"spans": run(self.span_embed, states).sigmoid()}
            if opt.contrastive_align_loss:
                out["likeness"] = self._likeness(states, memory[:, video.shape[1] :])
        else:
            memory, saliency = self._text_to_video(video, positions, mask, text, places, text_mask)
            samples = [self._spans(memory[b, :k], positions[b, :k]) for b, k in enumerate(n)]
            states, references = (torch.stack(parts, 1) for parts in zip(*samples, strict=True))
            out = {"spans": (run(self.span_embed, states) + logit(references)).sigmoid()}
            following = [(b + 1) % len(n) for b in range(len(n))]
            rolled = text[following], places[following], text_mask[following]
            out["foreign"] = self._text_to_video(video, positions, mask, *rolled)[1]
        return out | {"logits": self.class_embed(states), "saliency": saliency, "mask": mask}

    def _likeness(self, states, words):
        """Cosines of a moment query (L, B, K, d) with all words (B, N, d), padded ones too, summed."""
        queries = F.normalize(self.contrastive_align_projection_query(states), dim=-1)
        words = F.normalize(self.contrastive_align_projection_txt(words), dim=-1)
        return torch.einsum("lbmd,bnd->lbmn", queries, words).sum(3) / self.opt.temperature

    def _joint(self, video, positions, mask, text, places, text_mask):
        x, all_positions = torch.cat([video, text], 1), torch.cat([positions, places], 1)
        for layer in self.transformer.encoder.layers:
            x = layer.encode(x, all_positions, torch.cat([mask, text_mask], 1))
        if self.opt.pre_norm:
            x = self.transformer.encoder.norm(x)
        return x, self.saliency_proj(x[:, : video.shape[1]])[..., 0]

    def _text_to_video(self, x, positions, mask, text, places, text_mask):
        start = self.video_embed.weight[0] if self.paper == "td_detr" else None
        for layer in self.transformer.t2v_encoder.layers:
            x = layer.text_to_video(x, positions, text, places, mask, text_mask, start)
        B = len(x)
        x = torch.cat([self.global_rep_token.repeat(B, 1, 1), x], 1)
        all_positions = torch.cat([self.global_rep_pos.repeat(B, 1, 1), positions], 1)
        token_mask = torch.cat([torch.ones(B, 1, dtype=torch.bool), mask], 1)
        for layer in self.transformer.encoder.layers:
            x = layer.encode(x, all_positions, token_mask)
        whole, memory = self.saliency_proj2(x[:, 0]), x[:, 1:]
        products = torch.einsum("btd,bd->bt", self.saliency_proj1(memory), whole)
        return memory, products / math.sqrt(self.opt.hidden_dim)

    def _spans(self, memory, positions):
        """The states (L, K, d) and references (L, K, 2) of one sample."""
        decoder, d = self.transformer.decoder, self.opt.hidden_dim
        moved = reference = self.query_embed.weight.sigmoid()
        x, states, references = torch.zeros(len(reference), d), [], []
        for i, layer in enumerate(decoder.layers):
            references.append(moved)
            sines = torch.stack([span_sines(span, d) for span in reference])
            scale = run(decoder.query_scale, x) if i > 0 else 1.0
            u = sines * scale * run(decoder.ref_anchor_head, x).sigmoid() / reference[:, 1:]
            x = layer(x, run(decoder.ref_point_head, sines), u, memory, positions)
            states.append(decoder.norm(x))
            moved = (run(decoder.bbox_embed, x) + logit(reference)).sigmoid()
            reference = moved.detach()
        return torch.stack(states), torch.stack(references)


def overlap(a: list[float], b: list[float]) -> float:
    """Generalised IoU of two spans, start and end."""
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union, hull = (a[1] - a[0]) + (b[1] - b[0]) - common, max(a[1], b[1]) - min(a[0], b[0])
    return common / union - (hull - union) / hull


# weights of the L1 distance, the overlap and the class in the matching
COSTS = {"moment_detr": (10, 1, 4), "qd_detr": (10, 1, 4), "td_detr": (1, 10, 4)}


def matching(logits: Tensor, spans: Tensor, windows: list[tuple[float, float]], paper: str) -> tuple[int, ...]:
    """The moment query of each window, for one sample and layer; logits, spans (K, 2), centre and width."""
    cost, (l1, giou, foreground) = [], COSTS[paper]
    for z, (c, w) in zip(logits.tolist(), spans.tolist(), strict=True):
        p, row = 1 / (1 + math.exp(z[1] - z[0])), []
        for s, e in windows:
            distance = abs(c - (s + e) / 2) + abs(w - (e - s))
            row.append(l1 * distance - giou * overlap([c - w / 2, c + w / 2], [s, e]) - foreground * p)
        cost.append(row)
    choices = permutations(range(len(cost)), len(windows))
    return min(choices, key=lambda queries: sum(cost[q][w] for w, q in enumerate(queries)))


def losses(
    out: dict[str, Tensor],
    windows: list[list[tuple[float, float]]],
    pairs: Tensor,
    scores: Tensor,
    layer: int,
    paper: str,
) -> dict[str, float]:
    """The loss terms without their weights: of the moment queries after one decoder layer, and of the saliency."""
    logits, spans, saliency, mask = out["logits"][layer], out["spans"][layer], out["saliency"], out["mask"]
    B, K = logits.shape[:2]
    l1 = giou = classes = count = 0.0
    for b in range(B):
        matched = matching(logits[b], spans[b], windows[b], paper)
        for q, (s, e) in zip(matched, windows[b], strict=True):
            c, w = spans[b, q].tolist()
            l1 += abs(c - (s + e) / 2) + abs(w - (e - s))
            giou += 1 - overlap([c - w / 2, c + w / 2], [s, e])
            count += 1
        for q in range(K):
            log_p = logits[b, q].log_softmax(0)
            classes -= (log_p[0] if q in matched else 0.1 * log_p[1]).item()
    terms = {"l1": l1 / 2 / count, "giou": giou / count, "class": classes / B / K, "margin": 0.0}
    for b in range(B):
        for high, low in pairs[b].tolist():
            terms["margin"] += 2 / pairs.shape[1] / B * max(0.0, 0.2 + (saliency[b, low] - saliency[b, high]).item())
    if "likeness" in out:
        terms["contrastive_align"] = 0.0
        for b, z in enumerate(out["likeness"][layer].tolist()):
            matched = matching(logits[b], spans[b], windows[b], paper)
            share = sum(z[q] for q in matched) / len(matched)
            terms["contrastive_align"] += (math.log(sum(math.exp(x - max(z)) for x in z)) + max(z) - share) / B
    if "foreign" not in out:
        return terms
    terms |= {"contrast": 0.0, "negative": 0.0}
    for b in range(B):
        clips = mask[b]
        scaled = torch.cat([saliency[b][clips], out["foreign"][b][clips]]) / 0.5
        log_p = scaled - scaled.logsumexp(0)
        for rank in range(1, 12):
            high = [i for i, y in enumerate(scores[b][clips].tolist()) if y >= rank]
            if high:
                terms["contrast"] -= sum(log_p[i].item() for i in high) / len(high) / 12 / B
        for s in out["foreign"][b][clips].tolist():
            terms["negative"] -= math.log(1 - 1 / (1 + math.exp(-s))) / B
    return terms
