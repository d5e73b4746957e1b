"""A straightforward AMR, batched and built from stock modules: the baseline of `bench_amr.py`.

Parameters have the names of official checkpoints, so that `load_official` reads them; padding is masked. It is slow in
the same ways as the release  [AMR, padding]:

- stage 2 decodes twice, and so does its teacher, in training mode and with all its heads
- the matching computes the cost of every query of the batch for every window of the batch, layer by layer
- masks, and the overlaps that the quality head learns, are computed in a loop over samples
- losses are computed layer by layer
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mrlib.data import Batch

TEMPERATURE = 0.07


class MLP(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


class LinearLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, dropout: float, relu: bool):
        super().__init__()
        self.LayerNorm, self.relu = nn.LayerNorm(inputs), relu
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(self.LayerNorm(x))
        return F.relu(x) if self.relu else x


def holder(**parts) -> nn.Module:
    """A module that only holds these parts."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def sine_embed(x: Tensor, width: int) -> Tensor:
    """Sines and cosines of angles x (...); returns (..., width)."""
    i = torch.arange(width, dtype=torch.float32, device=x.device)
    angle = x[..., None] / 10000 ** (2 * (i // 2) / width)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class Layer(nn.Module):
    """Attention and feed-forward: in `t2v` clips attend to words, in `forward` to one another."""

    def __init__(self, opt: argparse.Namespace):
        super().__init__()
        d, p = opt.hidden_dim, opt.dropout
        self.self_attn = nn.MultiheadAttention(d, opt.nheads, dropout=p, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, opt.dim_feedforward), nn.Linear(opt.dim_feedforward, d)
        self.norm1, self.norm2, self.activation = nn.LayerNorm(d), nn.LayerNorm(d), nn.PReLU()
        self.dropout, self.dropout1, self.dropout2 = nn.Dropout(p), nn.Dropout(p), nn.Dropout(p)

    def ffn(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def t2v(self, x: Tensor, pos: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        x = x + self.dropout1(self.self_attn(x + pos, words, words, key_padding_mask=padding)[0])
        return self.norm2(x + self.ffn(self.norm1(x)))

    def forward(self, x: Tensor, pos: Tensor, padding: Tensor) -> Tensor:
        q = k = x + pos
        x = self.norm1(x + self.dropout1(self.self_attn(q, k, x, key_padding_mask=padding)[0]))
        return self.norm2(x + self.ffn(x))


class DecoderLayer(nn.Module):
    def __init__(self, opt: argparse.Namespace, first: bool, two_ways: bool):
        super().__init__()
        d, p, hidden = opt.hidden_dim, opt.dropout, opt.dim_feedforward
        self.heads, self.attention_dropout = opt.nheads, p
        names = [f"sa_{n}_proj" for n in ("qcontent", "qpos", "kcontent", "kpos", "v")]
        names += [f"ca_{n}_proj" for n in ("qcontent", "kcontent", "kpos", "v", "qpos_sine")]
        for name in names + ["ca_qpos_proj"] * first:
            setattr(self, name, nn.Linear(d, d))
        self.self_attn, self.cross_attn = (holder(out_proj=nn.Linear(d, d)) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(d, hidden), nn.Linear(hidden, d)
        if two_ways:
            self.linear1_active, self.linear2_active = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d) for _ in range(3))
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(p) for _ in range(4))
        self.activation, self.first = nn.PReLU(), first

    def attention(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None = None) -> Tensor:
        """q (B, K, heads, e), k (B, T, heads, e), v (B, T, d)"""
        v = v.unflatten(-1, (self.heads, -1))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        weights = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        if padding is not None:
            weights = weights.masked_fill(padding[:, None, None], float("-inf"))
        weights = F.dropout(weights.softmax(-1), self.attention_dropout, self.training)
        return torch.matmul(weights, v).transpose(1, 2).flatten(2)

    def forward(self, x, query_pos, sine, memory, pos, padding, active: bool) -> Tensor:
        def by_head(y):
            return y.unflatten(-1, (self.heads, -1))

        q = self.sa_qcontent_proj(x) + self.sa_qpos_proj(query_pos)
        k = self.sa_kcontent_proj(x) + self.sa_kpos_proj(query_pos)
        y = self.self_attn.out_proj(self.attention(by_head(q), by_head(k), self.sa_v_proj(x)))
        x = self.norm1(x + self.dropout1(y))
        q, k, place = self.ca_qcontent_proj(x), self.ca_kcontent_proj(memory), self.ca_kpos_proj(pos)
        if self.first:
            q, k = q + self.ca_qpos_proj(query_pos), k + place
        q = torch.cat([by_head(q), by_head(self.ca_qpos_sine_proj(sine))], -1)
        k = torch.cat([by_head(k), by_head(place)], -1)
        y = self.cross_attn.out_proj(self.attention(q, k, self.ca_v_proj(memory), padding))
        x = self.norm2(x + self.dropout2(y))
        one, two = (self.linear1_active, self.linear2_active) if active else (self.linear1, self.linear2)
        return self.norm3(x + self.dropout3(two(self.dropout(self.activation(one(x))))))


class StraightforwardAMR(nn.Module):
    """The network of `opt.stage`: "pretrain", or "distill", which decodes twice."""

    def __init__(self, opt: argparse.Namespace):
        super().__init__()
        d, p = opt.hidden_dim, opt.dropout
        self.opt, self.two_ways = opt, opt.stage == "distill"
        for name, inputs in (("input_vid_proj", opt.v_feat_dim), ("input_txt_proj", opt.t_feat_dim)):
            parts = (LinearLayer(d if i else inputs, d, opt.input_dropout, relu=i == 0) for i in range(2))
            setattr(self, name, nn.Sequential(*parts))
        attention = holder(cqa_linear=holder(conv1d=nn.Conv1d(4 * d, d, 1)))
        attention.w4C, attention.w4Q = nn.Parameter(torch.empty(d, 1)), nn.Parameter(torch.empty(d, 1))
        attention.w4mlu = nn.Parameter(torch.empty(1, 1, d))
        pool = holder(weight=nn.Parameter(torch.empty(d, 1)))
        concat = holder(weighted_pool=pool, conv1d=holder(conv1d=nn.Conv1d(2 * d, d, 1)))
        self.fuser, self.dropout = holder(cq_attention=attention, cq_concat=concat), nn.Dropout(p)
        self.span_embed, self.class_embed, self.iou_head = MLP(d, d, 2, 3), nn.Linear(d, 2), nn.Linear(d, 1)
        decoder = holder(
            layers=nn.ModuleList(DecoderLayer(opt, i == 0, self.two_ways) for i in range(opt.dec_layers)),
            norm=nn.LayerNorm(d),
            query_scale=MLP(d, d, d, 2),
            ref_point_head=MLP(d, d, d, 2),
            ref_anchor_head=MLP(d, d, 1, 2),
            bbox_embed=MLP(d, d, 2, 3),
        )
        stacks = (holder(layers=nn.ModuleList(Layer(opt) for _ in range(n))) for n in (2, opt.enc_layers))
        t2v_encoder, encoder = stacks
        self.transformer = holder(t2v_encoder=t2v_encoder, encoder=encoder, decoder=decoder)
        for parameter in [*self.transformer.parameters(), attention.w4C, attention.w4Q, attention.w4mlu, pool.weight]:
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.mask_head, self.saliency_proj1 = MLP(d, d, d, 3), nn.Linear(d, d)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))
        self.query_embed = nn.Embedding(opt.num_queries, 2)
        if self.two_ways:
            self.new_query_embed = nn.Embedding(opt.num_queries, 2)

    def forward(self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> dict[str, Tensor]:
        """video (B, T, D) with TEF, text (B, N, D'), bool masks."""
        video, text = self.input_vid_proj(video), self.input_txt_proj(text)
        sentence = text[torch.arange(len(text)), text_mask.sum(1) - 1]
        place = video_mask.cumsum(1, dtype=torch.float32)
        pos = sine_embed(place / (place[:, -1:] + 1e-6) * 2 * math.pi, self.opt.hidden_dim)
        padding = ~video_mask
        x = self.fuse(video, video_mask, text, text_mask)
        for layer in self.transformer.t2v_encoder.layers:
            x = layer.t2v(x, pos, text, ~text_mask)
        encoded = self.encode(x, pos, padding)
        saliency = self.saliency_proj1(encoded).sum(-1) / math.sqrt(self.opt.hidden_dim)
        weights = saliency.masked_fill(padding, float("-inf")).softmax(1)
        memory = self.encode(encoded + weights[..., None] * x, pos, padding)
        anchors = self.new_query_embed.weight if self.two_ways else self.query_embed.weight
        passes = [
            self.decode(memory, pos, padding, sentence, anchors, active)
            for active in (False, True)[: 1 + self.two_ways]
        ]
        out = {name: torch.cat([one[name] for one in passes], dim=2) for name in passes[0]}
        return out | {"saliency": saliency, "video": video, "text": text, "sentence": sentence}

    def fuse(self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        attention, concat = self.fuser.cq_attention, self.fuser.cq_concat
        v, t = self.dropout(video), self.dropout(text)
        score = v @ attention.w4C + (t @ attention.w4Q).transpose(1, 2) + (v * attention.w4mlu) @ t.transpose(1, 2)
        to_text = (score + (~text_mask).float()[:, None] * -1e30).softmax(2)
        to_video = (score + (~video_mask).float()[:, :, None] * -1e30).softmax(1)
        p = torch.bmm(to_text, text)
        q = torch.bmm(torch.bmm(to_text, to_video.transpose(1, 2)), video)
        x = torch.cat([video, p, video * p, video * q], dim=2).transpose(1, 2)
        x = attention.cqa_linear.conv1d(x).transpose(1, 2)
        alpha = (text @ concat.weighted_pool.weight + (~text_mask).float()[..., None] * -1e30).softmax(1)
        pooled = torch.matmul(text.transpose(1, 2), alpha).transpose(1, 2).repeat(1, x.shape[1], 1)
        x = torch.cat([x, pooled], dim=2).transpose(1, 2)
        return F.relu(concat.conv1d.conv1d(x).transpose(1, 2))

    def encode(self, x: Tensor, pos: Tensor, padding: Tensor) -> Tensor:
        for layer in self.transformer.encoder.layers:
            x = layer(x, pos, padding)
        return x

    def decode(self, memory, pos, padding, sentence, anchors, active: bool) -> dict[str, Tensor]:
        decoder, d = self.transformer.decoder, self.opt.hidden_dim
        reference = anchors.sigmoid()[None].repeat(len(memory), 1, 1)
        x = sentence[:, None].repeat(1, len(anchors), 1)
        states, references = [], [reference]
        for i, layer in enumerate(decoder.layers):
            sine = sine_embed(reference * 2 * math.pi, d // 2).flatten(-2)
            query_pos = decoder.ref_point_head(sine)
            sine = sine * (decoder.query_scale(x) if i else 1)
            sine = sine * (decoder.ref_anchor_head(x).sigmoid() / reference[..., 1:])
            x = layer(x, query_pos, sine, memory, pos, padding, active)
            moved = (decoder.bbox_embed(x) + inverse_sigmoid(reference)).sigmoid()
            if i < len(decoder.layers) - 1:
                references.append(moved)
            reference = moved.detach()
            states.append(decoder.norm(x))
        outs = [self.heads(h, r, memory) for h, r in zip(states, references, strict=True)]
        out = {name: torch.stack([one[name] for one in outs]) for name in outs[0]}
        out["masks"] = torch.cat([out["masks"][:-1], out["masks"][-2:-1]])
        return out | {"states": torch.stack(states)}

    def heads(self, h: Tensor, reference: Tensor, memory: Tensor) -> dict[str, Tensor]:
        patterns, clips = F.normalize(h + self.mask_head(h), dim=-1), F.normalize(memory, dim=-1)
        return {
            "spans": (self.span_embed(h) + inverse_sigmoid(reference)).sigmoid(),
            "logits": self.class_embed(h),
            "iou": self.iou_head(h)[..., 0],
            "masks": (self.logit_scale.exp() * torch.einsum("bkd,btd->bkt", patterns, clips)).sigmoid(),
        }


def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
    """The features with the ends of clips, computed sample by sample as in a data loader; not timed."""
    n = batch.target_mask.sum(1)
    tef = torch.zeros(*batch.target.shape[:2], 2)
    for b, length in enumerate(n.tolist()):
        t = torch.arange(length) / length
        tef[b, :length] = torch.stack([t, t + 1 / length], 1)
    return torch.cat([batch.target, tef], -1), batch.target_mask, batch.query, batch.query_mask


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    """The first ten windows of each sample, as centre and width and as masks of clips; not timed."""
    targets = []
    for b, windows in enumerate(batch.labels.spans):
        ends = windows[batch.labels.span_mask[b]][:10]
        masks = torch.zeros(len(ends), batch.target.shape[1])
        for mask, (s, e) in zip(masks, (ends * batch.target_mask[b].sum()).round().long().tolist(), strict=True):
            mask[s:e] = 1
        targets.append({"spans": torch.stack([ends.mean(1), ends[:, 1] - ends[:, 0]], 1), "masks": masks})
    return targets


def ends_of(spans: Tensor) -> Tensor:
    return torch.stack([spans[:, 0] - 0.5 * spans[:, 1], spans[:, 0] + 0.5 * spans[:, 1]], dim=-1)


def pairwise_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and gIoU (n, m) of spans (n, 2) and (m, 2), starts and ends."""
    left, right = torch.max(a[:, None, 0], b[:, 0]), torch.min(a[:, None, 1], b[:, 1])
    inter = (right - left).clamp(min=0)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0]) - inter
    hull = (torch.max(a[:, None, 1], b[:, 1]) - torch.min(a[:, None, 0], b[:, 0])).clamp(min=0)
    iou = inter / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (n, m) of masks (n, T) and (m, T)."""
    inter = a @ b.T
    return inter / (a.sum(1)[:, None] + b.sum(1) - inter).clamp(min=1e-6)


@torch.no_grad()
def hungarian(out: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The matched queries and windows of each sample, for the outputs (B, K, ...) of one layer."""
    B, K = out["logits"].shape[:2]
    p, spans, masks = out["logits"].flatten(0, 1).softmax(-1), out["spans"].flatten(0, 1), out["masks"].flatten(0, 1)
    windows, window_masks = (torch.cat([t[name] for t in targets]) for name in ("spans", "masks"))
    cost = 10 * torch.cdist(spans, windows, p=1) - pairwise_iou(ends_of(spans), ends_of(windows))[1]
    cost = cost - 4 * p[:, :1] + 5 * (1 - mask_iou(masks, window_masks))
    parts = cost.view(B, K, -1).cpu().split([len(t["spans"]) for t in targets], -1)
    pairs = [linear_sum_assignment(part[b]) for b, part in enumerate(parts)]
    return [(torch.as_tensor(i), torch.as_tensor(j)) for i, j in pairs]


def layer_losses(out: dict[str, Tensor], targets: list[dict[str, Tensor]], last: bool) -> dict[str, Tensor]:
    """The loss terms after one decoder layer."""
    pairs = hungarian(out, targets)
    at = torch.cat([torch.full_like(i, b) for b, (i, _) in enumerate(pairs)]), torch.cat([i for i, _ in pairs])
    windows, masks = (
        torch.cat([t[name][j] for t, (_, j) in zip(targets, pairs, strict=True)]) for name in ("spans", "masks")
    )
    matched = out["spans"][at]
    classes = torch.zeros_like(out["logits"])
    classes[..., 1] = 1
    classes[at] = torch.tensor([1.0, 0.0])
    logits = out["logits"]
    p, ce = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
    p_true = p * classes + (1 - p) * (1 - classes)
    focal = (0.25 * classes + 0.75 * (1 - classes)) * ce * (1 - p_true) ** 2
    predicted_masks = out["masks"][at]
    inter = (predicted_masks * masks).sum(1)
    mask_loss = 1 - inter / (predicted_masks.sum(1) + masks.sum(1) - inter).clamp(min=1e-6)
    best = torch.zeros_like(out["iou"])
    for b, target in enumerate(targets):
        overlap = pairwise_iou(ends_of(out["spans"][b].detach()), ends_of(target["spans"]))[0]
        best[b] = overlap.max(dim=1)[0]
    return {
        "l1": F.l1_loss(matched, windows),
        "giou": (1 - torch.diag(pairwise_iou(ends_of(matched), ends_of(windows))[1])).mean(),
        "class": focal.mean(),
        "mask": mask_loss.mean() * (0 if last else 1),
        "quality": F.mse_loss(out["iou"].sigmoid(), best),
    }


def losses(
    out: dict[str, Tensor], batch: Batch, targets: list[dict[str, Tensor]], teacher: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The loss terms of mrlib, without their weights; the discrimination is against the video."""
    layers = len(out["logits"])
    each = [
        layer_losses({n: out[n][i] for n in ("logits", "spans", "masks", "iou")}, targets, i == layers - 1)
        for i in range(layers)
    ]
    terms = {name: sum(one[name] for one in each) for name in each[0]}
    terms |= clip_losses(out, batch)
    if teacher is not None:
        K = teacher["states"].shape[2] // 2
        terms["distill"] = 1 - F.cosine_similarity(out["states"][:, :, :K], teacher["states"][:, :, :K], dim=-1).mean()
    return terms


def clip_losses(out: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    mask, text_mask, saliency, labels = batch.target_mask, batch.query_mask, out["saliency"], batch.labels
    B, rows = len(mask), torch.arange(len(mask))
    high, low = labels.pairs[:, :, 0], labels.pairs[:, :, 1]
    margin = 0.0
    for i in range(high.shape[1]):
        margin = margin + (0.2 + saliency[rows, low[:, i]] - saliency[rows, high[:, i]]).clamp(min=0).sum()
    scores = saliency.masked_fill(~mask, -1e3) / 0.5
    log_p = scores - scores.logsumexp(1, keepdim=True)
    contrast = 0.0
    for rank in range(1, 12):
        chosen = (labels.saliency >= rank).float() * mask
        if chosen.sum() == 0:
            continue
        mean = (chosen * log_p).sum(1) / (chosen.sum(1) + 1e-6)
        contrast = contrast - (mean * (chosen.sum(1) > 0)).mean()
    video = out["video"]
    mean_video = (video * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    s, v = F.normalize(out["sentence"], dim=-1), F.normalize(mean_video, dim=-1)
    logits, rows = s @ v.T / TEMPERATURE, torch.arange(B)
    text = F.normalize(out["text"], dim=-1)
    mean_text = (text * text_mask[..., None]).sum(1) / text_mask.sum(1, keepdim=True)
    near = torch.einsum("btd,bd->bt", F.normalize(video, dim=-1), mean_text) / TEMPERATURE
    positive, negative = labels.relevant.float(), labels.wrong.float()
    ctc = F.binary_cross_entropy_with_logits(near, positive, reduction="none")
    cosine = F.cosine_similarity(video, mean_video[:, None], dim=-1)
    p, n = ((cosine * x).sum(1) / x.sum(1).clamp(min=1) for x in (positive, negative))
    return {
        "margin": margin / (B * high.shape[1]) * 2,
        "contrast": contrast / 12,
        "vtc": (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2,
        "ctc": (ctc * mask).sum() / mask.sum(),
        "discriminate": F.softplus((n - p) / TEMPERATURE).mean(),
    }
