"""AMR: mining, cold start and distillation, unusual videos, files in the official layout, official checkpoints."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib import checkpoint, files, metrics, papers
from mrlib.align.trilinear import near_sentence
from mrlib.augment import identity, mining
from mrlib.augment.splice import splice, splice_official
from mrlib.checkpoint import load_official
from mrlib.data import Bank, Widths
from mrlib.ops.draw import Draw
from mrlib.train import main, predict_all
from mrlib.training.stages import TrainingRunner
from mrlib.training.trainer import Trainer
from tests.reference import official_amr
from tests.reference.official_amr import clip_losses, distill, layer_losses, make_opt, matching, random_network
from tests.reference.official_univtg import save
from tests.support import worlds
from tests.support.batches import alone, make_batch, rows
from tests.support.files import save_npy, save_npz, write_lines
from tests.support.modules import count
from tests.support.runs import contents, trained

QUICK = {"width": 16, "hidden": 16, "heads": 2, "layers": 1, "encoder_layers": 1, "decoder_layers": 1}
QUICK |= {"moment_queries": 3, "batch_size": 16, "epochs": 1}
K, WEIGHTS = 3, {"l1": 10.0, "giou": 1.0, "class": 4.0, "mask": 5.0}


def small(**settings):
    """A small AMR with dropout, whose models that mine keep every confident prediction."""
    mines = "mining" in settings.get("stages", ["mining"])
    mining_settings = {"mining.mine": 0.0, "mining.batch_size": 8} if mines else {}
    return papers.get("amr", "small", **QUICK | {"dropout": 0.1} | mining_settings | settings)


@pytest.fixture(scope="module")
def world():
    paper = small()
    return tuple(papers.open_split(paper, "sim", split=split, n=n) for split, n in (("train", 24), ("val", 8)))


TWICE = {"distill.epochs": 2}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """An uninterrupted run: its folder, history and model."""
    folder = tmp_path_factory.mktemp("whole")
    retriever, history = trained(small(**TWICE), world, folder)
    return folder, history, retriever


def digest(module):
    return hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in module.state_dict().values())).hexdigest()


def test_the_history_has_a_row_per_epoch_and_the_terms_and_counts_of_each_stage(whole):
    """[AMR stage 2] Two models for mining, the mining, cold start on spliced videos, distillation on real ones."""
    folder, history, _ = whole
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert rows == history.rows
    by_stage = {row["stage"]: row for row in rows}
    stages = ["mining_1", "mining_2", "mining", "coldstart", "distill"]
    assert [(r["stage"], r["epoch"]) for r in rows] == [*((stage, 1) for stage in stages), ("distill", 2)]
    counts = {"pasted", "dropped", "pasted_mined", "dropped_mined", "kept_no_donor", "kept_no_window"}
    for stage, row in by_stage.items():
        assert {k for k in row if k.startswith("augment/")} == {
            f"augment/{name}" for name in (counts if stage == "coldstart" else ())
        }
        assert ("loss/distill" in row) == (stage == "distill")
    assert by_stage["coldstart"]["augment/pasted"] >= 24 and by_stage["coldstart"]["augment/pasted_mined"] > 0
    assert [by_stage[s]["loss/discriminate"] > 0 for s in stages if s != "mining"] == [False, False, True, True]
    mined = mining.read(folder / "mining" / "wrong_spans.jsonl")
    assert by_stage["mining"]["mined/windows"] == sum(map(len, mined)) > 0
    assert by_stage["mining"]["mined/queries"] == sum(map(bool, mined)) / 24
    frame = history.frame()
    assert len(frame) == len(rows) and frame["train_s"].notna().all()


def test_each_mining_model_is_trained_on_one_half_and_mines_the_other(whole, world):
    """[AMR, mining] The run's record names the samples; the mined windows are those of the saved models."""
    folder, _, _ = whole
    halves = mining.halves(world[0], Draw(0, "mining"))
    wrong = mining.read(folder / "mining" / "wrong_spans.jsonl")
    for name, half, other_half in (("1", *halves), ("2", *halves[::-1])):
        settings = json.loads((folder / "mining" / name / "run.json").read_text())
        assert settings["train"]["digest"] == world[0].subset(half).digest()
        model = checkpoint.load(folder / "mining" / name / f"mining_{name}" / "best")
        unseen = world[0].subset(other_half)
        mined = mining.confusing(predict_all(model, unseen, 16), unseen, 0.0)
        assert mined == [wrong[i] for i in other_half.tolist()]


def test_mined_windows_are_in_the_batches_of_the_stages_that_follow(world, monkeypatch):
    """[AMR, splice], [AMR stage 2] Not in those of the mining models, nor in a run without mining."""
    batches = []

    def watching(augment, name):
        def watched(indices, dataset, draw):
            batch = augment(indices, dataset, draw)
            wrong = batch.labels.wrong
            batches.append((draw.stage, name, wrong is not None and bool(wrong.any())))
            return batch

        return watched

    for name, augment in (("identity", identity), ("splice", splice)):
        monkeypatch.setitem(papers.AUGMENTERS, name, watching(augment, name))
    trained(small(), (world[0], None))
    # a batch without a stage is the check of one sample before training
    assert {x for x in batches if x[0]} == {
        ("mining_1", "identity", False),
        ("mining_2", "identity", False),
        ("coldstart", "splice", True),
        ("distill", "identity", True),
    }
    batches.clear()
    trained(small(stages=["coldstart"]), (world[0], None))
    assert {x for x in batches if x[0]} == {("coldstart", "splice", False)}


@pytest.mark.parametrize("preset", [None, "official"])
def test_the_teacher_is_the_last_model_of_the_first_stage_and_does_not_change(preset, world, monkeypatch):
    """[AMR stage 2] It is in evaluation mode; as released, its moment queries are untrained."""
    make_teacher, teachers = TrainingRunner._make_teacher, []
    train_step, used = Trainer._train_step, {}

    def watched(runner, state):
        teacher = make_teacher(runner, state)
        teachers.append((runner.stage.name, teacher, teacher and digest(teacher), state))
        return teacher

    def watched_step(self, *rest):
        used[self.stage.name] = self.teacher
        return train_step(self, *rest)

    monkeypatch.setattr(TrainingRunner, "_make_teacher", watched)
    monkeypatch.setattr(Trainer, "_train_step", watched_step)
    paper = small(stages=["coldstart", "distill"], preset=preset, decoder_layers=2)
    retriever, _ = trained(paper, (world[0], None))
    (first, none, _, _), (second, teacher, before, state) = teachers
    assert (first, none, second) == ("coldstart", None, "distill") and used["distill"] is teacher
    assert digest(teacher) == before
    assert not teacher.training and not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in retriever.parameters()}
    last, weights = state.weights_of("coldstart", "last"), teacher.state_dict()
    assert last.keys() == weights.keys()
    anchors = "detector.decoder.moment_queries.weight"
    assert all(torch.equal(last[name], x) for name, x in weights.items() if name != anchors)
    assert torch.equal(last[anchors], weights[anchors]) == (preset is None)
    assert (retriever.state_dict()[anchors] - weights[anchors]).abs().max() > (0.5 if preset else 0)


@pytest.mark.parametrize("preset", [None, "official"])
def test_the_second_stage_starts_from_the_last_weights_of_the_first(preset, world, tmp_path):
    """[AMR stage 2] At a learning rate of 0 it ends with them; as released, both sets are one set of new queries."""
    settings = {"stages": ["coldstart", "distill"], "preset": preset, "decoder_layers": 2, "coldstart.epochs": 2}
    retriever, _ = trained(small(**settings, **{"distill.lr": 0.0}), (world[0], None), tmp_path)
    last = checkpoint.load(tmp_path / "coldstart" / "last").state_dict()
    tensors = {name.replace(".original.", "."): x for name, x in retriever.state_dict().items()}
    anchors = "detector.decoder.moment_queries.weight"
    assert all(torch.equal(x, tensors[name]) for name, x in last.items() if name != anchors)
    assert torch.equal(last[anchors], tensors[anchors]) == (preset is None)
    for name in tensors.keys() - last.keys():
        copied = name.replace("active_queries", "moment_queries").replace("active", "linear")
        assert torch.equal(tensors[name], last[copied]), name
    assert ("detector.decoder.active_queries.weight" in tensors) == (preset is None)


def test_one_seed_gives_the_same_bytes_and_another_does_not(whole, world, tmp_path):
    trained(small(**TWICE), world, tmp_path / "same")
    same = contents(tmp_path / "same")
    assert same == contents(whole[0])
    trained(small(**TWICE), world, tmp_path / "other", seed=1)
    other = contents(tmp_path / "other")
    assert other.keys() == same.keys()
    for name in ("mining/wrong_spans.jsonl", "coldstart/last.safetensors", "distill/last.safetensors"):
        assert other[name] != same[name], name


@pytest.mark.parametrize("when", ["after every epoch", "within epochs and between"])
def test_a_run_stopped_many_times_ends_with_the_same_bytes(when, whole, world, tmp_path, monkeypatch):
    """After every epoch, of the mining models too; or after some number of files, also within an epoch."""
    rename, last_files = files.os.replace, []
    for attempt in range(40):
        calls = 0

        def stop(source, target, attempt=attempt):
            nonlocal calls
            calls += 1
            rename(source, target)
            at_end = target.name == "resume.safetensors"
            if at_end if when == "after every epoch" else calls == (4, 17, 11, 15, 13)[attempt % 5]:
                last_files.append(str(target.relative_to(tmp_path)))
                raise KeyboardInterrupt

        monkeypatch.setattr(files.os, "replace", stop)
        try:
            _, history = trained(small(**TWICE), world, tmp_path)
        except KeyboardInterrupt:
            continue
        break
    assert contents(tmp_path) == contents(whole[0]) and history.rows == whole[1].rows
    if when == "after every epoch":
        assert last_files == [f"mining/{i}/resume.safetensors" for i in (1, 2)] + 4 * ["resume.safetensors"]
    else:
        assert len(last_files) > 5 and {name.split("/")[0] for name in last_files} >= {"mining", "coldstart", "distill"}


def test_a_run_stopped_within_an_epoch_ends_with_the_same_bytes(whole, world, tmp_path, monkeypatch):
    """[AMR stage 2] It stops at the second step of each stage; teacher and mined windows are restored."""
    split, stopped_stages = torch.Tensor.split, []

    class Steps(list):
        def __getitem__(self, part):
            for i, indices in enumerate(super().__getitem__(part)):
                if i == 1:
                    raise KeyboardInterrupt
                yield indices

    def steps(order, size, *rest):
        return Steps(split(order, size, *rest))

    for stage in ("mining_1", "mining_2", "coldstart", "distill"):
        epoch = Trainer.train_epoch

        def stopped(self, *rest, stage=stage, epoch=epoch):
            with monkeypatch.context() as patch:
                if self.stage.name == stage:
                    stopped_stages.append(stage)
                    patch.setattr(torch.Tensor, "split", steps)
                return epoch(self, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_epoch", stopped)
            with pytest.raises(KeyboardInterrupt):
                trained(small(**TWICE), world, tmp_path)
    trained(small(**TWICE), world, tmp_path)
    assert stopped_stages == ["mining_1", "mining_2", "coldstart", "distill"]
    assert contents(tmp_path) == contents(whole[0])


def test_a_checkpoint_of_the_second_stage_gives_the_predictions_of_the_run(whole, world):
    """[AMR stage 2] It predicts a window for every moment query of both sets."""
    folder, history, retriever = whole
    loaded = checkpoint.load(folder / "distill" / "best")
    lines = predict_all(loaded, world[1], batch_size=16)
    assert lines == predict_all(retriever, world[1], batch_size=16)
    assert lines == metrics.read_jsonl(folder / "predictions.jsonl")
    assert all(len(line["pred_relevant_windows"]) == 2 * K for line in lines)
    assert history.result["brief"]["MR-full-mAP"] == max(
        r["MR-full-mAP"] for r in history.rows if r["stage"] == "distill"
    )
    first = checkpoint.load(folder / "coldstart" / "best")
    assert all(len(line["pred_relevant_windows"]) == K for line in first.predict(world[1].batch([0, 1])))


ARMS = {
    "baseline": ({"stages": ["coldstart"], "coldstart.augment": "identity"}, ["coldstart"]),
    "splice": ({"stages": ["coldstart"]}, ["coldstart"]),
    "splice and boost": ({"stages": ["mining", "coldstart"]}, ["mining_1", "mining_2", "mining", "coldstart"]),
    "two plain stages": (
        {"stages": ["coldstart", "distill"], "distill.teacher": None, "distill.prepare": None}
        | {"distill.weights": WEIGHTS},
        ["coldstart", "distill"],
    ),
    "active queries alone": ({"stages": ["coldstart", "distill"], "distill.teacher": None}, ["coldstart", "distill"]),
    "a teacher alone": ({"stages": ["coldstart", "distill"], "distill.prepare": None}, ["coldstart", "distill"]),
    "separate sets": ({"joint_self_attention": False}, ["mining_1", "mining_2", "mining", "coldstart", "distill"]),
    "no discrimination": (
        {"stages": ["mining", "distill"], "distill.weights": {**WEIGHTS, "discriminate": 0.0}},
        ["mining_1", "mining_2", "mining", "distill"],
    ),
    "official": ({"preset": "official"}, ["mining_1", "mining_2", "mining", "coldstart", "distill"]),
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_the_ablation_trains(arm, world):
    """[AMR, results] Baseline, augmentation, two stages, active queries and distillation."""
    settings, stages = ARMS[arm]
    paper = small(**settings, decoder_layers=2)
    paper = replace(paper, stages=tuple(replace(stage, epochs=1) for stage in paper.stages))
    retriever, history = trained(paper, (world[0], None))
    assert [row["stage"] for row in history.rows] == stages
    for row in history.rows:
        assert all(np.isfinite(value) for key, value in row.items() if key != "stage")
    has_teacher = paper.stages[-1].teacher is not None
    assert ("loss/distill" in history.rows[-1]) == has_teacher
    sets = 1 if paper.stages[-1].prepare is None else 2
    assert len(retriever.predict(world[0].batch([0]))[0]["pred_relevant_windows"]) == K * sets
    untrained = papers.build(paper, world[0])
    same = [torch.equal(untrained.state_dict()[k], v) for k, v in retriever.state_dict().items() if "original" not in k
            and "active" not in k]  # fmt: skip
    assert same.count(False) > 0.95 * len(same)


def test_a_weight_of_an_unknown_loss_term_is_refused(world):
    """Without a teacher there is no distillation loss."""
    paper = small(stages=["distill"], **{"distill.weights": {"distill": 1.0}})
    with pytest.raises(
        ValueError, match=r"weights of stage 'distill' name \['distill'\], which are no loss terms; the terms are"
    ):
        trained(paper, (world[0], None))


def test_both_stages_train_in_mixed_precision(world):
    """Two steps of each stage; also as released."""
    for preset in (None, "official"):
        paper = small(stages=["coldstart", "distill"], preset=preset, decoder_layers=2)
        _, history = trained(paper, (world[0], None), precision="bf16")
        assert len(history.rows) == 2
        assert all(np.isfinite(value) for row in history.rows for key, value in row.items() if key != "stage")


def second_stage(data, **settings):
    """A model prepared for the second stage, with random changes of all parameters; times are not rounded."""
    paper = small(round_s=None, **{"dropout": 0.0, "decoder_layers": 2} | settings)
    retriever = papers.build(paper, data)
    papers.prepare(retriever, paper.stages[-1].prepare)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in retriever.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return retriever.eval()


def numbers(lines):
    """All predicted windows and saliency scores in one array."""
    return np.concatenate([[*np.ravel(x["pred_relevant_windows"]), *x["pred_saliency_scores"]] for x in lines])


@pytest.mark.parametrize("preset", [None, "official"])
def test_only_the_released_network_sees_batch_mates_and_padding(preset, world):
    """[AMR, padding] Compared with each sample alone and with other numbers on the padding; neither sees labels."""
    data = world[0]
    lengths = torch.tensor([12, 32, 20])
    rows = data.target.index(torch.arange(3))
    batch = data.gather(torch.where(torch.arange(32) < lengths[:, None], rows, -1), torch.arange(3))
    batch = replace(batch, duration_s=2.0 * lengths)
    retriever = second_stage(data, **({} if preset is None else {"preset": preset}))
    lines = retriever.predict(batch)
    shuffled = replace(batch, labels=batch.labels[torch.tensor([2, 0, 1])])
    assert retriever.predict(shuffled) == retriever.predict(batch.unlabelled()) == lines
    g = torch.Generator().manual_seed(0)
    junk = torch.where(batch.target_mask[..., None], batch.target, torch.randn(batch.target.shape, generator=g))
    changes = [retriever.predict(replace(batch, target=junk))]
    for b in range(3):
        changes.append([*lines[:b], *retriever.predict(alone(batch, b)), *lines[b + 1 :]])
    differences = [np.abs(numbers(change) - numbers(lines)).max() for change in changes]
    if preset is None:
        assert max(differences) < 2e-3  # of 64 s, rounded to milliseconds
    else:
        assert differences[0] > 1e-2 and differences[1] > 1e-2 and differences[3] > 1e-2


def odd_videos(seed, count=560):
    """Samples of sixty videos of many lengths with random features; some have 25 windows or 25 mined windows."""
    dice, many = random.Random(seed), [(i, i + 1) for i in range(25)]
    lengths = [dice.choice([1, 1, 2, 3, 7, 13, 26]) for _ in range(60)]
    annotated = []
    for _ in range(count):
        v = dice.randrange(60)
        windows, wrong = (worlds.odd_windows(dice, lengths[v], 4) for _ in range(2))
        if lengths[v] == 26 and dice.random() < 0.5:
            windows, wrong = dice.choice([(many, wrong), (windows, many)])
        scores = {t: [dice.randrange(5)] * 3 for t in range(lengths[v]) if dice.random() < 0.6}
        annotated.append((v, windows, wrong if dice.random() < 0.5 else [], scores if dice.random() < 0.7 else None))
    data, g = worlds.world(lengths, annotated, late=1), torch.Generator().manual_seed(seed)
    banks = {
        name: Bank(torch.randn(len(bank.rows), width, generator=g), bank.offsets)
        for name, bank, width in (("target", data.target, 6), ("query", data.query, 4))
    }
    return replace(data, **banks, streams={})


@pytest.mark.parametrize("preset", [None, "official"])
def test_unusual_samples_give_finite_losses_gradients_and_predictions(preset):
    """Windows that touch, overlap or are the whole video, 25 windows, one clip, no saliency, no mined windows."""
    paper = small(width=8, hidden=8, decoder_layers=2, preset=preset)
    first, second = (papers.build(paper, Widths(6, 4, None), seed) for seed in range(2))
    papers.prepare(second, paper.stages[-1].prepare)
    samples, kinds = 0, Counter()
    for number in range(9):
        data = odd_videos(number)
        batch = (splice, identity, splice_official)[number % 3](torch.arange(len(data)), data, Draw(number))
        labels, teacher_outputs = batch.labels, None
        for retriever in (first, second):
            with torch.set_grad_enabled(number % 3 == 0):
                aligned, outputs = retriever(batch)
                terms = retriever.losses(aligned, outputs, batch, teacher_outputs)
                total = sum(terms.values())
            assert total.isfinite(), terms
            if number % 3 == 0:
                total.backward()
            moments = retriever.detector.decode(outputs, batch)
            assert moments.spans.isfinite().all() and (moments.spans >= 0).all() and (moments.spans <= 1).all()
            assert moments.scores.isfinite().all()
            teacher_outputs = {"states": outputs["states"].detach()}
        samples += len(batch)
        kinds["twenty-five windows"] += int((labels.span_mask.sum(1) == 25).sum())
        kinds["one clip"] += int((batch.lengths == 1).sum())
        kinds["not scored"] += int((~labels.saliency_mask).sum())
        kinds["nothing mined"] += int((~labels.wrong.any(1)).sum())
        kinds["all relevant"] += int((labels.relevant == batch.target_mask).all(1).sum())
    assert samples > 5000 and all(kinds[name] > 50 for name in kinds) and len(kinds) == 5, kinds
    for retriever in (first, second):
        assert all(p.grad.isfinite().all() for p in retriever.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """QVHighlights in AMR's layout: four CLIP layers in half precision, and motion features; two splits."""
    root, dice = tmp_path_factory.mktemp("amr"), np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4)):
        lines = []
        for i in range(n):
            vid, clips = f"{split}{i}", 20 - i
            save_npz(root / f"slowfast_features/{vid}.npz", features=dice.standard_normal((clips, 12)).astype("f4"))
            save_npy(root / f"clip_b32_vid_k4/{vid}.npy", dice.standard_normal((clips, 4, 768)).astype("f2"))
            save_npy(root / f"clip_b32_txt_k4/{split}{i}.npy", dice.standard_normal((9, 4, 512)).astype("f4"))
            line = {"qid": f"{split}{i}", "query": "A dog runs.", "duration": 2.0 * clips, "vid": vid}
            line |= {"relevant_windows": [[4, 8]], "relevant_clip_ids": [2, 3]}
            lines.append(line | {"saliency_scores": [[4, 3, 2], [1, 0, 4]]})
        write_lines(root / f"highlight_{split}_release.jsonl", lines)
    return root


def test_files_in_the_official_layout_train_from_the_command_line(released, tmp_path, capsys):
    """[AMR, features] Mining, a step of cold start, a step of distillation; predicted times are whole clips."""
    words = [f"{k}={json.dumps(v)}" for k, v in QUICK.items() if k != "epochs"]
    command = ["amr", "--dataset", "qvhighlights", "--root", str(released), "--epochs", "1", "--device", "cpu"]
    main([*command, "--set", *words, "coldstart.data=pairs", "mining.mine=0", "--out", str(tmp_path / "run")])
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() >= {"MR-full-mAP", "mIoU", "HL-min-Fair-mAP"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in rows] == ["mining_1", "mining_2", "mining", "coldstart", "distill"]
    assert rows[2]["mined/windows"] > 0
    lines = metrics.read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert [len(line["pred_relevant_windows"]) for line in lines] == [2 * K] * 4
    for i, line in enumerate(lines):
        assert len(line["pred_saliency_scores"]) == 20 - i
        assert all(t % 2 == 0 and 0 <= t <= 40 - 2 * i for *ends, _ in line["pred_relevant_windows"] for t in ends)
    widths = json.loads((tmp_path / "run" / "distill" / "best.json").read_text())["widths"]
    assert widths == {"target": 12 + 4 * 768, "query": 4 * 512, "joint": None}


# ---- official checkpoints

OPTIONS = {
    "as released": {},
    "wide": {"hidden_dim": 24, "dim_feedforward": 40, "nheads": 6},
    "deep": {"enc_layers": 3, "dec_layers": 3},
    "few layers, one head, one query": {"enc_layers": 1, "dec_layers": 2, "nheads": 1, "num_queries": 1},
    "one projection": {"n_input_proj": 1},
    "three projections": {"n_input_proj": 3},
    "no endpoints": {"ctx_mode": "video", "v_feat_dim": 7},
}
STAGES = ("pretrain", "distill")
LENGTHS, MOMENTS = [9, 4, 12, 7], [[(2, 6), (7, 9)], [(0, 3)], [(0, 2), (3, 4), (7, 12)], [(0, 7)]]


def labelled_batch(lengths=LENGTHS, windows=MOMENTS, **options):
    """A batch for the small networks with every label that a loss reads, and the `rows` for the reference."""
    batch = make_batch(lengths, joint=None, motion=7, words=7, query=6, seed=1, windows=windows, **options)
    g = torch.Generator().manual_seed(3)
    labels, T = batch.labels, batch.target.shape[1]
    scores = torch.randint(1, 12, (len(lengths), T), generator=g) * labels.relevant
    wrong = (torch.rand(len(lengths), T, generator=g) < 0.3) & ~labels.relevant & batch.target_mask
    wrong[1] = False  # a sample without mined windows
    pairs = torch.tensor([[[3, 2], [4, 0]], [[1, 0], [2, 3]], [[11, 0], [3, 5]], [[6, 0], [1, 2]]])
    batch = replace(batch, labels=replace(labels, saliency=scores.float(), wrong=wrong, pairs=pairs))
    return batch, *rows(batch)


def saved(tmp_path, **options):
    network = random_network(make_opt(**options))
    return network, save(network, tmp_path / "model.ckpt")


def outputs_of(retriever, batch):
    """The outputs of our network under the names of the reference."""
    aligned, outputs = retriever(batch)
    names = {"logits": "logits", "spans": "spans_cw", "iou": "quality", "masks": "masks", "states": "states"}
    return {name: outputs[key] for name, key in names.items()} | {"saliency": aligned.saliency}


def assert_outputs_equal(ours, theirs, mask):
    """Masks and saliency are compared on real clips only; they are not used on padding."""
    for name in ("logits", "spans", "iou", "states"):
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, axes in (("saliency", mask), ("masks", mask[None, :, None].expand_as(ours["masks"]))):
        torch.testing.assert_close(ours[name][axes], theirs[name][axes], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_outputs_are_those_of_the_official_network(name, stage, tmp_path):
    """[AMR stage 1], [AMR stage 2] As released, of a padded batch; corrected, of each sample alone."""
    network, path = saved(tmp_path, stage=stage, **OPTIONS[name])
    long_queries = make_batch([3, 5, 2], joint=None, motion=7, words=11, query=6)
    for batch in (labelled_batch()[0], long_queries):
        targets, queries = rows(batch)
        outputs = outputs_of(load_official(path, "amr"), batch)
        assert_outputs_equal(outputs, network(targets, queries), batch.target_mask)
        corrected = outputs_of(load_official(path, "amr", corrected=True), batch)
        assert_outputs_equal(corrected, official_amr.alone(network, targets, queries), batch.target_mask)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("corrected", [False, True])
@torch.no_grad()
def test_losses_are_those_of_the_official_network(stage, corrected, tmp_path):
    """[AMR, losses] All terms of every layer, and distillation; the reference matches by exhaustive search."""
    network, path = saved(tmp_path, stage=stage)
    batch, targets, queries = labelled_batch()
    windows = [[(s / n, e / n) for s, e in sample] for sample, n in zip(MOMENTS, LENGTHS, strict=True)]
    out = official_amr.alone(network, targets, queries) if corrected else network(targets, queries)
    retriever = load_official(path, "amr", corrected)
    aligned, outputs = retriever(batch)
    matched = retriever.detector.match(outputs, retriever.detector.truth(batch))
    by_layer = retriever.detector.layer_losses(outputs, batch)
    for layer in range(len(out["logits"])):
        for b, sample in enumerate(windows):
            tensors = (out[name][layer, b] for name in ("logits", "spans", "masks"))
            moment_queries = matching(*tensors, sample, LENGTHS[b])
            assert matched[layer, b].tolist() == [*moment_queries, *[-1] * (3 - len(sample))]
        expected = layer_losses(out, windows, layer)
        expected["quality"] = expected.pop("iou")
        if layer == len(out["logits"]) - 1:
            expected["mask"] = 0.0  # as released
        assert {name: x[layer].item() for name, x in by_layer.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    labels = batch.labels
    expected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong)
    if corrected:  # the preset's discrimination remains that against the video
        all_corrected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong, corrected=True)
        expected["ctc"] = all_corrected["ctc"]
    terms = {name: x.item() for name, x in retriever.aligner.losses(aligned, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if stage == "distill":
        teacher = random_network(make_opt(stage=stage), seed=5)
        states = load_official(save(teacher, tmp_path / "teacher.ckpt"), "amr", corrected)(batch)[1]["states"]
        teacher_out = official_amr.alone(teacher, targets, queries) if corrected else teacher(targets, queries)
        half = out["states"].shape[2] // 2
        terms = retriever.losses(aligned, outputs, batch, {"states": states[:, :, :half]})
        assert terms["distill"].item() == pytest.approx(distill(out["states"], teacher_out["states"]), rel=1e-4)


@torch.no_grad()
def test_the_papers_discrimination_is_against_the_sentence(tmp_path):
    """[AMR, losses] Only over the samples with mined clips."""
    network, path = saved(tmp_path)
    batch, targets, queries = labelled_batch()
    windows = [[(s / n, e / n) for s, e in sample] for sample, n in zip(MOMENTS, LENGTHS, strict=True)]
    labels, out = batch.labels, official_amr.alone(network, targets, queries)
    aligner = load_official(path, "amr", corrected=True).aligner
    aligner.against = near_sentence
    term = aligner.losses(aligner(batch), batch)["discriminate"].item()
    expected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong, corrected=True)
    assert term == pytest.approx(expected["discriminate"], rel=1e-4)


@torch.no_grad()
def test_the_released_and_the_corrected_network_give_different_spans(tmp_path):
    """[AMR, padding] The released network sees batch mates and padding."""
    _, path = saved(tmp_path)
    batch, _, _ = labelled_batch()
    pair = [outputs_of(load_official(path, "amr", corrected=c), batch)["spans"] for c in (False, True)]
    assert ((pair[0] - pair[1]).abs().amax((0, 2, 3)) > 1e-4).any()


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_a_loaded_model_can_be_saved_and_loaded_again(stage, tmp_path):
    """[AMR stage 2] With its second set of moment queries."""
    _, path = saved(tmp_path, stage=stage)
    batch, _, _ = labelled_batch()
    retriever = load_official(path, "amr")
    checkpoint.save(retriever, tmp_path / "ours")
    loaded = checkpoint.load(tmp_path / "ours")
    assert loaded.predict(batch) == retriever.predict(batch)
    assert len(loaded.predict(batch)[0]["pred_relevant_windows"]) == (4 if stage == "pretrain" else 8)


def test_an_inconsistent_checkpoint_is_refused(tmp_path):
    """[AMR stage 2] A wrong stage, options that do not fit, two different copies of a head."""
    network, path = saved(tmp_path, stage="distill")
    network.opt = make_opt(stage="pretrain")
    with pytest.raises(ValueError, match="stage of opt must be distill where there is a new_query_embed"):
        load_official(save(network, path), "amr")
    for changes, message in (
        ({"use_txt_pos": True}, "use_txt_pos of opt must be False"),
        ({"pre_norm": True}, "pre_norm of opt must be False"),
        ({"stage": "other"}, "stage of opt must be pretrain or distill"),
        ({"dec_layers": 1}, "dec_layers of opt must be 2 or more"),
        ({"enc_layers": 3}, "does not fit"),
        ({"num_queries": 6}, "does not fit"),
    ):
        network.opt = make_opt(**({"stage": "distill"} | changes))
        with pytest.raises(ValueError, match=message):
            load_official(save(network, path), "amr")
    network.opt = make_opt(stage="distill")
    network.transformer.decoder.class_embed = torch.nn.Linear(16, 2)
    message = "transformer.decoder.class_embed.weight and class_embed.weight of model differ, but are one head"
    with pytest.raises(ValueError, match=message + "; copy the file again"):
        load_official(save(network, path), "amr")


def test_numbers_of_parameters_are_those_of_the_released_networks():
    """[AMR stage 1], [AMR stage 2] Except the positions of words, which nothing reads."""
    with torch.device("meta"):
        ours = papers.build(papers.get("amr"), Widths(5376, 2048, None))
        assert count(ours) + 8_704 == 11_801_641
        papers.prepare(ours, "active_queries")
    assert count(ours) + 8_704 == 13_903_933
