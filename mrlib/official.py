"""The checkpoints of the official releases, as our models.

Here     `load_official` reads what Moment-DETR and all whose code descends from it give to `torch.save`: a dict of
         model, optimizer, lr_scheduler, epoch and opt. Only tensors, plain values and the `argparse.Namespace` of
         options are unpickled. The network is what `opt` says, checked against every tensor; `RELEASES` has a row per
         paper
Departs  what the official scripts do around the network, weights of losses, rounding, suppression, is not read. The
         released UniVTG has no forward for `pre_norm`; it is read as MATR's
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrlib import papers
from mrlib.data import Widths
from mrlib.retriever import MomentRetriever
from mrlib.settings import require

Tensors = dict[str, Tensor]
SHOWN = 10  # keys of a kind in an error


class Release(NamedTuple):
    """How one official repository stores its network."""

    preset: str  # of `mrlib.papers`: what the released code does
    settings: Callable[[Options, Tensors], dict[str, Any]]  # what else `mrlib.papers.get` takes
    names: tuple[tuple[str, str | Callable], ...]  # our names of tensors to theirs, as regular expressions
    transposed: tuple[str, ...] = ()  # theirs that lie across
    unread: tuple[str, ...] = ()  # modules that no prediction depends on, unless something of them has a name here
    corrected: tuple[tuple[str, Any], ...] = ()  # settings under which padding is not seen
    plain: Callable[[Tensors], Tensors] = dict  # theirs, each once and in our shape
    prepared: Callable[[Options, Tensors], tuple[str, ...]] = lambda opt, tensors: ()  # of `mrlib.papers.PREPARATIONS`


class Options(dict[str, Any]):
    """The `opt` of a checkpoint."""

    def read(self, name: str, kind: type) -> Any:
        """ValueError if it is not there, or of another kind."""
        if name not in self:
            raise ValueError(f"opt has no {name}")
        value = self[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        require(fits, f"{name} of opt", value, f"of type {kind.__name__}")
        return value


def load_official(path: str | os.PathLike, paper: str, corrected: bool = False) -> MomentRetriever:
    """The model of a checkpoint that an official release wrote, on the CPU, in evaluation mode.

    path       the file
    paper      a name of `RELEASES`
    corrected  False: gives what the official network gives for a padded batch. True: what it gives for each sample
               alone, whatever the padding
    raises     ValueError that names the file, and every key and shape that does not fit; FileNotFoundError
    """
    if paper not in RELEASES:
        raise ValueError(f"unknown release {paper!r}; known: {', '.join(RELEASES)}")
    release = RELEASES[paper]
    tensors, options = _read(Path(path))
    try:
        settings = release.settings(options, tensors) | dict(release.corrected if corrected else ())
        with torch.device("meta"):  # no memory before the shapes are known to fit
            retriever = papers.build(
                papers.get(paper, preset=release.preset, **settings), _widths(options, tensors), seed=0
            )
            for name in release.prepared(options, tensors):
                papers.prepare(retriever, name)
        tensors = release.plain(tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not describe a network that can be built: {error}") from error
    retriever.load_state_dict(_matched(path, release, retriever.state_dict(), tensors), assign=True)
    return retriever.eval()


def _read(path: Path) -> tuple[Tensors, Options]:
    """The tensors and options of a checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for the file may hold anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ValueError(
                f"{path} holds {found[1]}; only tensors, plain values and an argparse.Namespace are unpickled"
            ) from None
        raise ValueError(
            f"{path} is not a whole checkpoint of PyTorch ({type(error).__name__}); copy it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of model and opt")
    lacking = [name for name in ("model", "opt") if name not in content]
    if lacking:
        raise ValueError(f"{path} has no {' and no '.join(lacking)}; it has {_listed(map(str, content))}")
    model, opt = content["model"], content["opt"]
    if not isinstance(opt, argparse.Namespace):
        raise ValueError(f"opt of {path} is a {type(opt).__name__}, not an argparse.Namespace")
    if not isinstance(model, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in model.items()):
        raise ValueError(f"model of {path} is not a dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in model.items()}, Options(vars(opt))


def _matched(path: str | os.PathLike, release: Release, own: Tensors, tensors: Tensors) -> Tensors:
    """Their tensors under our names, all of them."""
    theirs = {name: _renamed(name, release.names) for name in own}
    shapes = {theirs[name]: tuple(tensor.shape) for name, tensor in own.items()}
    shapes |= {name: shapes[name][::-1] for name in release.transposed}
    unread = tuple(module for module in release.unread if not any(name.startswith(module) for name in shapes))
    wrong = {
        "missing": [name for name in shapes if name not in tensors],
        "unexpected": [name for name in tensors if name not in shapes and not name.startswith(unread)],
        "of another shape": [
            f"{name} expected {shape} found {tuple(tensors[name].shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    if any(wrong.values()):
        problems = (f"{len(names)} {what}: {_listed(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"{path} does not fit the network that its opt describes; {'; '.join(problems)}")
    return {
        name: (tensors[key].mT if key in release.transposed else tensors[key]).float().contiguous()
        for name, key in theirs.items()
    }


def _renamed(name: str, rules: Iterable[tuple[str, str | Callable]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _widths(opt: Options, tensors: Tensors) -> Widths:
    """D and D'. The official scripts add the two of TEF to `v_feat_dim` before they store it; without is read too."""
    target = opt.read("v_feat_dim", int)
    norm = tensors.get("input_vid_proj.0.LayerNorm.weight")
    ends = 2 if "tef" in opt.read("ctx_mode", str) else 0
    if norm is None or len(norm) != target + ends:
        target -= ends
    require(target >= 1, "v_feat_dim of opt", opt["v_feat_dim"], "the width of the video's features")
    return Widths(target=target, query=opt.read("t_feat_dim", int), joint=None)


def _encoder(opt: Options) -> dict[str, Any]:
    """The settings of the encoder, of all that descend from Moment-DETR."""
    context, learned = opt.read("ctx_mode", str), opt.read("use_txt_pos", bool)
    for name, known in (("span_loss_type", ("l1",)), ("position_embedding", ("sine", "v2"))):
        require(opt.read(name, str) in known, f"{name} of opt", opt[name], " or ".join(known))
    require("video" in context, "ctx_mode of opt", context, "with video, for nothing else shows the target")
    require(opt.read("n_input_proj", int) >= 1, "n_input_proj of opt", opt["n_input_proj"], "1 or more")
    return {
        "width": opt.read("hidden_dim", int),
        "layers": opt.read("enc_layers", int),
        "heads": opt.read("nheads", int),
        "hidden": opt.read("dim_feedforward", int),
        "projections": opt["n_input_proj"],
        "dropout": opt.read("dropout", float),
        "input_dropout": opt.read("input_dropout", float),
        "tef": "tef" in context,
        "query_positions": "learned" if learned else "none",
    } | ({"places": opt.read("max_q_l", int)} if learned else {})


def _joint(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """UniVTG's settings, and MATR's after it: the encoder and the times of its clips."""
    seconds = opt.read("clip_length", float)
    # the official time of clip i is (i + seconds / 2) / n
    times = {1: "centre", 2: "edge"}
    require(seconds in times, "clip_length of opt", seconds, "1 or 2 seconds")
    return _encoder(opt) | {"pre_norm": opt.read("pre_norm", bool), "timestamps": times[seconds]}


def _matr(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """As released, heads read the encoder only; where they are twice as wide, also the decoder, beside every clip."""
    settings = _joint(opt, tensors)
    first, asked = (tensors.get(name) for name in ("class_embed_c.layers.0.weight", "query_embed.weight"))
    if first is None or first.ndim != 3 or first.shape[1] != 2 * settings["width"]:
        return settings
    require(not settings["pre_norm"], "pre_norm of opt", True, "False where heads read the decoder")
    # the released builder forgets `num_queries` and makes one
    count = 1 if asked is not None and len(asked) == 1 else opt.read("num_queries", int)
    return settings | {"fusion": "channel", "moment_queries": count, "decoder_layers": opt.read("dec_layers", int)}


def _queries(opt: Options) -> dict[str, Any]:
    """The encoder and the moment queries of Moment-DETR and QD-DETR."""
    require(not opt.get("a_feat_dim"), "a_feat_dim of opt", opt.get("a_feat_dim"), "None: sound is not read")
    for name in ("num_queries", "dec_layers"):
        require(opt.read(name, int) >= 1, f"{name} of opt", opt[name], "1 or more")
    return _encoder(opt) | {"moment_queries": opt["num_queries"], "decoder_layers": opt["dec_layers"]}


def _moment_detr(opt: Options, tensors: Tensors) -> dict[str, Any]:
    return _queries(opt) | {"pre_norm": opt.read("pre_norm", bool)}


def _qd_detr(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """The official network has no forward for `pre_norm`."""
    require(not opt.read("pre_norm", bool), "pre_norm of opt", True, "False")
    return _queries(opt)


def _td_detr(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """Where the options do not say beta, it is the printed one."""
    return _qd_detr(opt, tensors) | ({"beta": opt.read("beta", float)} if "beta" in opt else {})


def _amr(opt: Options, tensors: Tensors) -> dict[str, Any]:
    """From words to clips there are always two layers, whatever `enc_layers` says of those among clips."""
    for name in ("pre_norm", "use_txt_pos"):
        require(not opt.read(name, bool), f"{name} of opt", True, "False")
    read = _queries(opt)
    del read["query_positions"]
    require(read["decoder_layers"] >= 2, "dec_layers of opt", read["decoder_layers"], "2 or more")
    own = {"layers": 2, "encoder_layers": read["layers"], "most_windows": opt.read("max_windows", int)}
    return read | own


def _amr_stage(opt: Options, tensors: Tensors) -> tuple[str, ...]:
    stage, second = opt.read("stage", str), "new_query_embed.weight" in tensors
    require(stage in ("pretrain", "distill"), "stage of opt", stage, "pretrain or distill")
    require(
        second == (stage == "distill"),
        "stage of opt",
        stage,
        "distill where there is a new_query_embed, and only there",
    )
    return ("released_queries",) if second else ()


def _amr_plain(tensors: Tensors) -> Tensors:
    """Heads that the decoder has too are one; the second stage's queries take the place of the first's."""
    plain = dict(tensors)
    for name in tensors:
        own = name.removeprefix("transformer.decoder.")
        if own != name and own.startswith(("span_embed.", "class_embed.", "iou_head.")):
            if own in tensors and not torch.equal(tensors[name], tensors[own]):
                raise ValueError(f"{name} and {own} differ, which are one head")
            del plain[name]
        elif name.startswith("fuser."):
            tensor = plain[name]
            vector = tensor.numel() == max(tensor.shape)
            plain[name] = tensor.flatten() if vector else tensor.squeeze(-1)  # kernels of one clip
    if "new_query_embed.weight" in plain:
        plain["query_embed.weight"] = plain.pop("new_query_embed.weight")
    return plain


def _projection(match: re.Match) -> str:
    """Four modules a layer in ours: LayerNorm, dropout, Linear, ReLU; two in theirs, dropout and Linear in one."""
    layer, part = divmod(int(match[2]), 4)
    whose = {"target": "input_vid_proj", "query": "input_txt_proj"}.get(match[1], f"{match[1]}.flow_proj")
    return f"{whose}.{layer}.{'net.1' if part else 'LayerNorm'}."


_JOINT = (
    (r"^aligner\.(encoder|fuse)\.", ""),
    (r"^project_(target|query)\.(\d+)\.", _projection),
    (r"^token_type\.", "token_type_embeddings."),
    (r"^places\.norm\.", "txt_position_embed.LayerNorm."),
    (r"^places\.", "txt_position_embed."),
    (r"^(layers|norm)\.", r"transformer.encoder.\1."),
    (r"\.feed_forward\.", "."),
)

_HIDDEN, _KEYS = (("padding", "hidden"),), (("masks", "keys"),)
_UNREAD = ("txt_position_embed.", "contrastive_align_projection_")
_MOMENT_QUERIES = (
    (r"^aligner\.(project_|places)", r"\1"),
    (r"^detector\.decoder\.moment_queries\.", "query_embed."),
    (r"^detector\.heads\.0\.mlp\.", "span_embed."),
    (r"^detector\.heads\.1\.linear\.", "class_embed."),
)
_TEXT_TO_VIDEO = (
    (r"^aligner\.layers\.(\d+)\.cross_attn\.", r"transformer.t2v_encoder.layers.\1.self_attn."),
    (r"^aligner\.layers\.", "transformer.t2v_encoder.layers."),
    (r"^aligner\.encoder\.", "transformer.encoder.layers."),
)
_DAB = (
    (r"\.self_attn\.([qk])_content\.", r".sa_\1content_proj."),
    (r"\.self_attn\.([qk])_place\.", r".sa_\1pos_proj."),
    (r"\.self_attn\.value\.", ".sa_v_proj."),
    (r"\.cross_attn\.([qk])_content\.", r".ca_\1content_proj."),
    (r"\.cross_attn\.([qk])_place\.", r".ca_\1pos_proj."),
    (r"\.cross_attn\.q_sine\.", ".ca_qpos_sine_proj."),
    (r"\.cross_attn\.value\.", ".ca_v_proj."),
    (r"^detector\.decoder\.place\.", "detector.decoder.ref_point_head."),
    (r"^detector\.decoder\.scale\.", "detector.decoder.query_scale."),
    (r"^detector\.decoder\.anchor\.", "detector.decoder.ref_anchor_head."),
    (r"^detector\.decoder\.move\.", "detector.decoder.bbox_embed."),
    (r"^detector\.decoder\.", "transformer.decoder."),
)
_QD_DETR = (
    *_MOMENT_QUERIES,
    *_TEXT_TO_VIDEO,
    (r"^aligner\.global_token$", "global_rep_token"),
    (r"^aligner\.global_position$", "global_rep_pos"),
    (r"^aligner\.clip_side\.", "saliency_proj1."),
    (r"^aligner\.global_side\.", "saliency_proj2."),
    *_JOINT,
    *_DAB,
)
_DYNAMICS = (
    (r"^aligner\.layers\.0\.mix\.start\.", "video_embed."),
    (r"^(aligner\.layers\.\d+)\.mix\.attend\.", r"\1.self_attn_flow."),
    (r"^(aligner\.layers\.\d+)\.mix\.project\.(\d+)\.", _projection),
)

# name of a paper -> how its official release stores its network
RELEASES = {
    "univtg": Release(
        preset="official",
        settings=_joint,
        names=(
            *_JOINT,
            (r"^aligner\.pool\.", "weightedpool."),
            (r"^detector\.foreground\.", "class_embed."),
            (r"^detector\.boundary\.", "span_embed."),
        ),
        transposed=("weightedpool.weight",),
        unread=("txt_position_embed.",),
        corrected=_HIDDEN,
    ),
    "matr": Release(
        preset="official_code",
        settings=_matr,
        names=(
            *_JOINT,
            (r"^aligner\.moment_queries\.", "query_embed."),
            (r"^aligner\.decoder\.", "transformer.decoder.layers."),
            (r"^aligner\.norm\.", "transformer.decoder.norm."),
            (r"\.cross_attn\.", ".multihead_attn."),
            (r"^detector\.foreground\.", "class_embed_c."),
            (r"^detector\.boundary\.", "span_embed_c."),
        ),
        unread=("txt_position_embed.", "transformer.decoder.", "query_embed.", "transformer.vid_proj.")
        + ("span_embed.", "class_embed.", "weightedpool."),
        corrected=_HIDDEN,
    ),
    "moment_detr": Release(
        preset="official",
        settings=_moment_detr,
        names=(
            *_MOMENT_QUERIES,
            (r"^aligner\.saliency\.", "saliency_proj."),
            (r"^aligner\.", ""),
            *_JOINT,
            (r"^detector\.decoder\.(layers|norm)\.", r"transformer.decoder.\1."),
            (r"\.cross_attn\.", ".multihead_attn."),
        ),
        unread=_UNREAD,
    ),
    "qd_detr": Release(
        preset="official",
        settings=_qd_detr,
        names=_QD_DETR,
        unread=_UNREAD,
        corrected=_KEYS,
    ),
    "td_detr": Release(
        preset="official",
        settings=_td_detr,
        names=(*_DYNAMICS, *_QD_DETR),
        unread=_UNREAD,
        corrected=_KEYS,
    ),
    "amr": Release(
        preset="official",
        settings=_amr,
        names=(
            *_MOMENT_QUERIES,
            (r"^detector\.heads\.2\.mlp\.", "mask_head."),
            (r"^detector\.heads\.2\.scale$", "logit_scale"),
            (r"^detector\.heads\.3\.linear\.", "iou_head."),
            *_TEXT_TO_VIDEO,
            (r"^aligner\.saliency\.", "saliency_proj1."),
            (r"^aligner\.fusion\.clip$", "fuser.cq_attention.w4C"),
            (r"^aligner\.fusion\.word$", "fuser.cq_attention.w4Q"),
            (r"^aligner\.fusion\.both$", "fuser.cq_attention.w4mlu"),
            (r"^aligner\.fusion\.pool$", "fuser.cq_concat.weighted_pool.weight"),
            (r"^aligner\.fusion\.mix\.", "fuser.cq_attention.cqa_linear.conv1d."),
            (r"^aligner\.fusion\.out\.", "fuser.cq_concat.conv1d.conv1d."),
            (r"\.feed_forward\.original\.", "."),
            (r"\.feed_forward\.active([12])\.", r".linear\1_active."),
            *_JOINT,
            *_DAB,
        ),
        unread=_UNREAD,
        corrected=_HIDDEN,
        plain=_amr_plain,
        prepared=_amr_stage,
    ),
}
