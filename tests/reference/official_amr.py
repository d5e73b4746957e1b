"""A plain second implementation of the released AMR, both stages, with the names of its checkpoints.

It uses nothing of mrlib, so that `load_official` can be compared with it: the fusion goes sample by sample, the decoder
head by head and one set of moment queries after the other, losses are summed in loops, matching is exhaustive search.
"""

from __future__ import annotations

import argparse
import math
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tests.reference.official_detr import Layer, SpanLayer, logit, mlp, overlap, run, span_sines
from tests.reference.official_univtg import Projected, holder, sine

OPT = {
    "dset_name": "hl",
    "stage": "pretrain",  # or "distill"
    "hidden_dim": 16,
    "dim_feedforward": 24,
    "enc_layers": 2,  # of the encoder alone
    "dec_layers": 3,
    "nheads": 4,
    "n_input_proj": 2,
    "v_feat_dim": 9,  # as stored, with the two of TEF
    "t_feat_dim": 6,
    "a_feat_dim": None,
    "a_feat_dir": None,
    "ctx_mode": "video_tef",
    "use_tef": True,
    "use_video": True,
    "use_txt_pos": False,
    "pre_norm": False,
    "num_queries": 4,
    "input_dropout": 0.5,
    "dropout": 0.1,
    "txt_drop_ratio": 0,
    "max_q_l": 12,
    "max_v_l": 75,
    "clip_length": 2,
    "max_windows": 10,
    "span_loss_type": "l1",
    "position_embedding": "sine",
    "aux_loss": True,
    "contrastive_align_loss": False,
    "contrastive_hdim": 8,
    "temperature": 0.07,
    "saliency_margin": 0.2,
    "lw_saliency": 1.0,
    "set_cost_span": 10,
    "set_cost_giou": 1,
    "set_cost_class": 4,
    "set_cost_mask": 5,
    "span_loss_coef": 10,
    "giou_loss_coef": 1,
    "label_loss_coef": 4,
    "mask_loss_coef": 5,
    "iou_scores_loss_coef": 1,
    "VTC_loss_coef": 0.3,
    "CTC_loss_coef": 0.5,
    "disc_loss_coef": 0.5,
    "dill_loss_coef": 0.5,
    "eos_coef": 0.1,
    "nms_thd": -1,
    "device": torch.device("cpu"),
    "v_feat_dirs": ["slowfast_features", "clip_b32_vid_k4"],
    "exp_id": None,
}


T2V_LAYERS = 2  # text-to-video layers; no option changes it


def make_opt(**changes) -> argparse.Namespace:
    """Options of a small network."""
    return argparse.Namespace(**(OPT | changes))


class TwoWayLayer(SpanLayer):
    """A decoder layer with a second feed-forward for the active queries; the rest is shared."""

    def __init__(self, opt, first: bool):
        super().__init__(opt, first)
        d, hidden = opt.hidden_dim, opt.dim_feedforward
        self.linear1_active, self.linear2_active = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def active(self, x, p, u, memory, positions):
        x = self.attend(x, p, u, memory, positions)
        return self.norm3(x + self.linear2_active(self.activation(self.linear1_active(x))))


class Official(Projected):
    """The network of `opt.stage`, of two decoder layers or more."""

    def __init__(self, opt: argparse.Namespace, *, own_masks: bool = False):
        """own_masks: the last layer has its own masks; False: those of the layer before, as released."""
        super().__init__(opt)
        d, self.own_masks, self.two_ways = opt.hidden_dim, own_masks, opt.stage == "distill"
        self.txt_position_embed = holder(position_embeddings=nn.Embedding(opt.max_q_l, d), LayerNorm=nn.LayerNorm(d))
        attention = holder(cqa_linear=holder(conv1d=nn.Conv1d(4 * d, d, 1)))
        attention.w4C, attention.w4Q = nn.Parameter(torch.randn(d, 1)), nn.Parameter(torch.randn(d, 1))
        attention.w4mlu = nn.Parameter(torch.randn(1, 1, d))
        pool = nn.Module()
        pool.weight = nn.Parameter(torch.randn(d, 1))
        concat = holder(weighted_pool=pool, conv1d=holder(conv1d=nn.Conv1d(2 * d, d, 1)))
        self.fuser = holder(cq_attention=attention, cq_concat=concat)
        self.span_embed, self.class_embed, self.iou_head = mlp(d, 2, 3), nn.Linear(d, 2), nn.Linear(d, 1)
        kind = TwoWayLayer if self.two_ways else SpanLayer
        decoder = holder(
            layers=nn.ModuleList(kind(opt, i == 0) for i in range(opt.dec_layers)),
            norm=nn.LayerNorm(d),
            query_scale=mlp(d, d, 2),
            ref_point_head=mlp(d, d, 2),
            ref_anchor_head=mlp(d, 1, 2),
            bbox_embed=mlp(d, 2, 3),
            span_embed=self.span_embed,  # the same modules a second time
            class_embed=self.class_embed,
            iou_head=self.iou_head,
        )
        t2v_encoder, encoder = (
            holder(layers=nn.ModuleList(Layer(opt, prelu=True) for _ in range(layers)))
            for layers in (T2V_LAYERS, opt.enc_layers)
        )
        self.transformer = holder(t2v_encoder=t2v_encoder, encoder=encoder, decoder=decoder)
        self.mask_head, self.saliency_proj1 = mlp(d, d, 3), nn.Linear(d, d)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.query_embed = nn.Embedding(opt.num_queries, 2)
        if self.two_ways:
            self.new_query_embed = nn.Embedding(opt.num_queries, 2)
        if opt.contrastive_align_loss:
            for name in ("query", "txt", "vid"):
                self.add_module(f"contrastive_align_projection_{name}", nn.Linear(d, opt.contrastive_hdim))

    def forward(self, targets: list[Tensor], queries: list[Tensor]) -> dict[str, Tensor]:
        """The outputs for a batch as in `project`.

        logits, spans (L, B, K', 2), iou (L, B, K'), masks (L, B, K', T) and states (L, B, K', d) after every decoder
        layer; K' is K, or 2 K, the original queries before the active ones
        saliency (B, T), mask bool (B, T); after the projections, video (B, T, d), its mean (B, d), text (B, N, d) with
        text_mask bool (B, N), and its last word, sentence (B, d)
        """
        opt, n, m = self.opt, [len(target) for target in targets], [len(query) for query in queries]
        video, text, mask, text_mask = self.project(targets, queries)
        sentence = torch.stack([text[b, k - 1] for b, k in enumerate(m)])
        positions = torch.stack([sine(k, video.shape[1], opt.hidden_dim) for k in n])
        places = self.places(text)
        fused = torch.stack([self._fuse(video[b], text[b], n[b], m[b]) for b in range(len(n))])
        for layer in self.transformer.t2v_encoder.layers:
            fused = layer.text_to_video(fused, positions, text, places, mask, text_mask)
        encoded = self._encode(fused, positions, mask)
        saliency = self.saliency_proj1(encoded).sum(-1) / math.sqrt(opt.hidden_dim)
        shares = saliency.softmax(1)  # padded clips get one too
        memory = self._encode(encoded + shares[..., None] * fused, positions, mask)
        samples = [self._decode(memory[b, :k], positions[b, :k], sentence[b]) for b, k in enumerate(n)]
        states, references = (torch.stack(parts, 1) for parts in zip(*samples, strict=True))
        patterns = F.normalize(states + run(self.mask_head, states), dim=-1)
        cosines = torch.einsum("lbkd,btd->lbkt", patterns, F.normalize(memory, dim=-1))
        masks = list((self.logit_scale.exp() * cosines).sigmoid())
        if not self.own_masks:
            masks[-1] = masks[-2]
        return {
            "logits": self.class_embed(states),
            "spans": (run(self.span_embed, states) + logit(references)).sigmoid(),
            "iou": self.iou_head(states)[..., 0],
            "masks": torch.stack(masks),
            "states": states,
            "saliency": saliency,
            "mask": mask,
            "video": video,
            "mean": video.mean(1),  # of padded clips too
            "text": text,
            "text_mask": text_mask,
            "sentence": sentence,
        }

    def _fuse(self, video: Tensor, text: Tensor, n: int, m: int) -> Tensor:
        """Of one sample: video (T, d) with n real clips, text (N, d) with m real words -> (T, d)."""
        attention, concat = self.fuser.cq_attention, self.fuser.cq_concat
        words = text[:m]
        scores = video @ attention.w4C + (words @ attention.w4Q).T + (video * attention.w4mlu[0]) @ words.T  # (T, m)
        to_words, to_clips = scores.softmax(1), scores[:n].softmax(0)
        by_words = to_words @ words
        by_clips = to_words @ to_clips.T @ video[:n]
        conv = attention.cqa_linear.conv1d
        x = torch.cat([video, by_words, video * by_words, video * by_clips], 1) @ conv.weight[..., 0].T + conv.bias
        whole = ((words @ concat.weighted_pool.weight).softmax(0) * words).sum(0)
        conv = concat.conv1d.conv1d
        return (torch.cat([x, whole.repeat(len(x), 1)], 1) @ conv.weight[..., 0].T + conv.bias).relu()

    def _encode(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        for layer in self.transformer.encoder.layers:
            x = layer.encode(x, positions, mask)
        return x

    def _decode(self, memory: Tensor, positions: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """The states (L, K', d) and references (L, K', 2) of one sample."""
        if not self.two_ways:
            return self._pass(memory, positions, sentence, self.query_embed.weight, active=False)
        both = [self._pass(memory, positions, sentence, self.new_query_embed.weight, active=a) for a in (False, True)]
        states, references = (torch.cat(parts, 1) for parts in zip(*both, strict=True))
        return states, references

    def _pass(self, memory: Tensor, positions: Tensor, sentence: Tensor, anchors: Tensor, *, active: bool):
        decoder, d = self.transformer.decoder, self.opt.hidden_dim
        moved = reference = anchors.sigmoid()
        x, states, references = sentence.repeat(len(anchors), 1), [], []
        for i, layer in enumerate(decoder.layers):
            references.append(moved)
            sines = torch.stack([span_sines(span, d) for span in reference])
            scale = run(decoder.query_scale, x) if i > 0 else 1.0
            u = sines * scale * run(decoder.ref_anchor_head, x).sigmoid() / reference[:, 1:]
            step = layer.active if active else layer
            x = step(x, run(decoder.ref_point_head, sines), u, memory, positions)
            states.append(decoder.norm(x))
            moved = (run(decoder.bbox_embed, x) + logit(reference)).sigmoid()
            reference = moved.detach()
        return torch.stack(states), torch.stack(references)


def random_network(opt: argparse.Namespace, seed: int = 1, **parts) -> Official:
    """A network with random values in all parameters."""
    torch.manual_seed(seed)
    network = Official(opt, **parts).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            scale = 0.3 if p.ndim < 2 else 1.5 / p[0].numel() ** 0.5
            norm = float("norm" in name.lower() and name.endswith("weight"))
            centre = math.log(1 / 0.07) if name == "logit_scale" else norm
            factor = 0.3 if "_embed.layers.2" in name else 1.0  # so that no span is very narrow
            p.copy_(centre + factor * scale * torch.randn_like(p))
    return network


@torch.no_grad()
def copy_feed_forwards(network: Official) -> None:
    """Start stage 2: copy the feed-forwards of the original queries to the active ones."""
    for layer in network.transformer.decoder.layers:
        layer.linear1_active.load_state_dict(layer.linear1.state_dict())
        layer.linear2_active.load_state_dict(layer.linear2.state_dict())


def alone(network: Official, targets: list[Tensor], queries: list[Tensor]) -> dict[str, Tensor]:
    """The outputs for each sample alone, collected into one batch, with zeros on the padding."""
    each = [network([target], [query]) for target, query in zip(targets, queries, strict=True)]
    out = {name: torch.cat([x[name] for x in each], 1) for name in ("logits", "spans", "iou", "states")}
    T = max(len(target) for target in targets)
    out["masks"] = torch.cat([F.pad(x["masks"], (0, T - x["masks"].shape[-1])) for x in each], 1)
    for name in ("saliency", "mask", "video", "text", "text_mask"):
        out[name] = pad_sequence([x[name][0] for x in each], batch_first=True)
    return out | {name: torch.cat([x[name] for x in each]) for name in ("mean", "sentence")}


def clips_of(window: tuple[float, float], n: int) -> range:
    """The clips that a window covers; its start and end are fractions of n clips."""
    first, after = (math.floor(t * n + 1e-4) for t in window)
    return range(first, after)


def mask_overlap(mask: list[float], clips: range) -> float:
    """IoU of a soft mask, a share 0..1 of each clip, with a range of clips."""
    common = sum(mask[t] for t in clips)
    return common / (sum(mask) + len(clips) - common)


def matching(
    logits: Tensor, spans: Tensor, masks: Tensor, windows: list[tuple[float, float]], n: int
) -> tuple[int, ...]:
    """The moment query of each window, for one layer and sample of n clips; logits, spans (K', 2), masks (K', T)."""
    cost = []
    for z, (c, w), mask in zip(logits.tolist(), spans.tolist(), masks.tolist(), strict=True):
        p, row = 1 / (1 + math.exp(z[1] - z[0])), []
        for s, e in windows:
            distance = abs(c - (s + e) / 2) + abs(w - (e - s))
            mask_cost = 1 - mask_overlap(mask, clips_of((s, e), n))
            row.append(10 * distance - overlap([c - w / 2, c + w / 2], [s, e]) - 4 * p + 5 * mask_cost)
        cost.append(row)
    choices = permutations(range(len(cost)), len(windows))
    return min(choices, key=lambda queries: sum(cost[q][w] for w, q in enumerate(queries)))


def focal(z: float, positive: bool) -> float:
    """The focal loss of a logit."""
    p = 1 / (1 + math.exp(-z))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def iou(a: list[float], b: tuple[float, float]) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return common / ((a[1] - a[0]) + (b[1] - b[0]) - common)


def layer_losses(out: dict[str, Tensor], windows: list[list[tuple[float, float]]], layer: int) -> dict[str, float]:
    """The loss terms of the moment queries after one decoder layer, without their weights.

    windows  of each sample, start and end as fractions of its clips
    """
    logits, spans, masks, scores = (out[name][layer] for name in ("logits", "spans", "masks", "iou"))
    B, K = logits.shape[:2]
    terms, count = dict.fromkeys(("l1", "giou", "class", "mask", "iou"), 0.0), sum(map(len, windows))
    for b, sample in enumerate(windows):
        n = int(out["mask"][b].sum())
        matched = matching(logits[b], spans[b], masks[b], sample, n)
        for q, (s, e) in zip(matched, sample, strict=True):
            c, w = spans[b, q].tolist()
            terms["l1"] += (abs(c - (s + e) / 2) + abs(w - (e - s))) / 2 / count
            terms["giou"] += (1 - overlap([c - w / 2, c + w / 2], [s, e])) / count
            terms["mask"] += (1 - mask_overlap(masks[b, q].tolist(), clips_of((s, e), n))) / count
        for q in range(K):
            (c, w), (yes, no) = spans[b, q].tolist(), logits[b, q].tolist()
            terms["class"] += (focal(yes, q in matched) + focal(no, q not in matched)) / (B * K * 2)
            best = max((iou([c - w / 2, c + w / 2], window) for window in sample), default=0.0)
            terms["iou"] += (scores[b, q].sigmoid().item() - best) ** 2 / (B * K)
    return terms


def clip_losses(
    out: dict[str, Tensor],
    windows: list[list[tuple[float, float]]],
    pairs: Tensor,
    scores: Tensor,
    wrong: Tensor,
    corrected: bool = False,
) -> dict[str, float]:
    """The loss terms of clips, words and sentences, without their weights.

    pairs      (B, P, 2) clips of which the first ranks above the second
    scores     (B, T) saliency labels
    wrong      bool (B, T) mined confusing clips; read by `discriminate` alone, the term of stage 2
    corrected  with the outputs of `alone`: `ctc` over real clips only; `discriminate` against the sentence, over the
               samples that have wrong clips
    """
    video, saliency, B = F.normalize(out["video"], dim=-1), out["saliency"], len(windows)
    whole, sentence = (F.normalize(out[name], dim=-1) for name in ("mean", "sentence"))
    terms = dict.fromkeys(("margin", "contrast", "vtc", "ctc", "discriminate"), 0.0)
    clips = int(out["mask"].sum()) if corrected else out["mask"].numel()
    counted = sum(row.any().item() for row in wrong) if corrected else B
    for b in range(B):
        n = int(out["mask"][b].sum())
        for high, low in pairs[b].tolist():
            terms["margin"] += 2 / pairs.shape[1] / B * max(0.0, 0.2 + (saliency[b, low] - saliency[b, high]).item())
        log_p = (saliency[b, :n] / 0.5).log_softmax(0)
        for rank in range(1, 12):
            high = [i for i, y in enumerate(scores[b, :n].tolist()) if y >= rank]
            if high:
                terms["contrast"] -= sum(log_p[i].item() for i in high) / len(high) / 12 / B
        to_videos, to_sentences = whole @ sentence[b] / 0.07, sentence @ whole[b] / 0.07
        for row in (to_videos, to_sentences):
            terms["vtc"] -= row.log_softmax(0)[b].item() / 2 / B
        relevant = {t for window in windows[b] for t in clips_of(window, n)}
        words = F.normalize(out["text"][b, out["text_mask"][b]], dim=-1).mean(0)
        for t in range(n if corrected else len(video[b])):
            z = (video[b, t] @ words).item() / 0.07 if t < n else 0.0
            terms["ctc"] += math.log1p(math.exp(-z if t in relevant else z)) / clips
        cosines = (video[b] @ (sentence if corrected else whole)[b]).tolist()
        confusing = [cosines[t] for t in range(n) if wrong[b, t]]
        p, q = (sum(x) / len(x) if x else 0.0 for x in ([cosines[t] for t in relevant], confusing))
        if confusing or not corrected:
            terms["discriminate"] += math.log1p(math.exp((q - p) / 0.07)) / counted
    return terms


def distill(student: Tensor, teacher: Tensor) -> float:
    """One minus the mean cosine of the states of the student's original queries and the teacher's.

    student (L, B, 2 K, d); teacher (L, B, K or 2 K, d), original queries first
    """
    L, B, K = student.shape[0], student.shape[1], student.shape[2] // 2
    total = 0.0
    for layer in range(L):
        for b in range(B):
            for q in range(K):
                total += F.cosine_similarity(student[layer, b, q], teacher[layer, b, q], dim=0).item()
    return 1 - total / (L * B * K)
