"""What a training step of AMR takes, ours beside a straightforward one of the same network and weights.

    python tests/benchmarks/bench_amr.py [--threads 1 2] [--repeats 7] [--profile]

32 videos of 75 clips of 5378 numbers and 20 words of 2048: forward, losses, backward, clipping, AdamW. The two take
turns, and first have to agree on every loss without dropout. Medians; the processor's time beside that of the clock,
for neighbours make the clock's longer. Threads wait asleep, so that waiting is no processor's time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is there
import torch
from torch import Tensor, nn

from mrlib.checkpoint import load_official
from mrlib.data import Batch
from mrlib.papers import PAPERS, Stage
from mrlib.retriever import MomentRetriever
from tests.reference.official_amr import make_opt
from tests.reference.straightforward_amr import StraightforwardAMR, inputs_of, losses, targets_of
from tests.support.batches import make_batch

RELEASED = {"hidden_dim": 256, "dim_feedforward": 1024, "dec_layers": 4, "nheads": 8, "num_queries": 10, "max_q_l": 32}
RELEASED |= {"v_feat_dim": 5378, "t_feat_dim": 2048}
STAGES = {"pretrain": "coldstart", "distill": "distill"}


def training_batch(samples: int, clips: int, words: int, target: int, query: int) -> Batch:
    """As many windows a sample as in QVHighlights, every label drawn; nothing is padding."""
    g = torch.Generator().manual_seed(0)
    windows = []
    for b in range(samples):
        count = (1, 1, 2, 1, 1, 3, 1, 1, 2, 5)[b % 10]
        ends = torch.randperm(clips + 1, generator=g)[: 2 * count].sort().values.tolist()
        windows.append(list(zip(ends[::2], ends[1::2], strict=True)))
    batch = make_batch([clips] * samples, joint=None, motion=target, words=words, query=query, windows=windows)
    relevant = batch.labels.relevant
    scores = torch.randint(1, 13, relevant.shape, generator=g) * relevant
    wrong = (torch.rand(relevant.shape, generator=g) < 0.1) & ~relevant
    pairs = torch.randint(clips, (samples, 2, 2), generator=g)
    labels = replace(batch.labels, saliency=scores.float(), wrong=wrong, pairs=pairs)
    text = torch.randn(batch.query.shape, generator=g)
    return replace(batch, query=text, query_mask=torch.ones_like(batch.query_mask), labels=labels)


def pair_of(opt: argparse.Namespace) -> tuple[StraightforwardAMR, MomentRetriever]:
    """A straightforward network, and ours with its weights."""
    network = StraightforwardAMR(opt)
    return network, _ours(network.state_dict(), opt)


def taught_by(network: StraightforwardAMR, opt: argparse.Namespace) -> MomentRetriever:
    """Our teacher of such a network's weights: one pass, with the queries that this one asks with."""
    tensors = {name: x for name, x in network.state_dict().items() if "active" not in name}
    tensors["query_embed.weight"] = tensors.pop("new_query_embed.weight")
    return _ours(tensors, argparse.Namespace(**{**vars(opt), "stage": "pretrain"})).requires_grad_(False)


def _ours(tensors: dict[str, Tensor], opt: argparse.Namespace) -> MomentRetriever:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        torch.save({"model": tensors, "opt": opt}, path)
        return load_official(path, "amr", corrected=True)


class Step:
    """A training step in two ways: `ways[name]()` gives the terms; with `learn` it moves the weights."""

    def __init__(self, opt: argparse.Namespace, batch: Batch):
        torch.manual_seed(0)
        self.network, self.retriever = pair_of(opt)
        self.batch, self.inputs, self.targets = batch, inputs_of(batch), targets_of(batch)
        self.network_teacher = self.teacher = None
        if opt.stage == "distill":
            self.network_teacher = StraightforwardAMR(opt).requires_grad_(False)
            self.teacher = taught_by(self.network_teacher, opt)
        self.ways: dict[str, Callable[[], dict[str, Tensor]]] = {"plain": self.plain, "ours": self.ours}
        self.models: dict[str, nn.Module] = {"plain": self.network, "ours": self.retriever}
        self.optimisers = {
            n: torch.optim.AdamW(m.parameters(), 1e-4, weight_decay=1e-4) for n, m in self.models.items()
        }

    def train(self, mode: bool) -> None:
        """As each trains: the straightforward teacher, as released, with dropout; ours without."""
        for model in (self.network, self.retriever, self.network_teacher):
            if model is not None:
                model.train(mode)

    def plain(self) -> dict[str, Tensor]:
        out, teacher = self.network(*self.inputs), None
        if self.network_teacher is not None:
            with torch.no_grad():
                teacher = self.network_teacher(*self.inputs)
        return losses(out, self.batch, self.targets, teacher)

    def ours(self) -> dict[str, Tensor]:
        aligned, outputs = self.retriever(self.batch)
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(self.batch)[1]
        return self.retriever.losses(aligned, outputs, self.batch, taught)

    def learn(self, name: str, stage: Stage) -> None:
        terms = self.ways[name]()
        loss = sum(stage.weights.get(term, 1.0) * x for term, x in terms.items())
        torch.stack([x.detach() for x in terms.values()]).tolist()
        self.optimisers[name].zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.models[name].parameters(), stage.optimiser.clip).item()
        self.optimisers[name].step()


def apart(step: Step) -> float:
    """The largest difference of a loss, of 1 or of itself."""
    step.train(False)
    with torch.no_grad():
        plain, ours = step.plain(), step.ours()
    if plain.keys() != ours.keys():
        raise ValueError(f"other losses: {sorted(plain)} and {sorted(ours)}")
    return max(abs(plain[n] - ours[n]).item() / max(1.0, abs(plain[n].item())) for n in plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="what a step of ours is made of")
    args = parser.parse_args()
    batch = training_batch(32, 75, 20, 5376, 2048)
    stages = {stage.name: stage for stage in PAPERS["amr"].stages}
    print("milliseconds of a step, medians          clock                processor")
    for released, name in STAGES.items():
        step = Step(make_opt(**RELEASED, stage=released), batch)
        difference = apart(step)
        assert difference < 1e-4, f"losses differ by {difference}"
        step.train(True)
        for threads in args.threads:
            torch.set_num_threads(threads)
            times = {way: ([], []) for way in step.ways}
            for i in range(args.repeats + 1):
                for way in step.ways:
                    clock, processor = time.perf_counter(), time.process_time()
                    step.learn(way, stages[name])
                    if i:  # the first is for warming up
                        times[way][0].append(1e3 * (time.perf_counter() - clock))
                        times[way][1].append(1e3 * (time.process_time() - processor))
            clocks, processors = ([statistics.median(times[way][i]) for way in ("plain", "ours")] for i in (0, 1))
            shown = "   ".join(f"{a:7.0f} {b:7.0f} {b / a:5.2f}" for a, b in (clocks, processors))
            print(
                f"{name:10} {threads} threads  plain, ours, ratio {shown}   load {os.getloadavg()[0]:.1f}", flush=True
            )
        if args.profile:
            with torch.profiler.profile() as profile:
                step.learn("ours", stages[name])
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
