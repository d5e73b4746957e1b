"""AMR from end to end: mining, cold start, distillation; files, odd videos, what must not show; its checkpoints."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrlib import checkpoint, files, metrics, papers
from mrlib.augment import identity, mining
from mrlib.augment.splice import splice, splice_official
from mrlib.checkpoint import load_official
from mrlib.data import Bank, Widths
from mrlib.ops.draw import Draw
from mrlib.train import fit, main, predict_all
from mrlib.training.stages import TrainingRunner
from mrlib.training.trainer import Trainer
from tests.reference import official_amr
from tests.reference.official_amr import clip_losses, distill, layer_losses, make_opt, matching, random_network
from tests.reference.official_univtg import save
from tests.support import worlds
from tests.support.batches import alone, make_batch
from tests.support.files import save_npy, save_npz, write_lines
from tests.support.modules import count

QUICK = {"width": 16, "hidden": 16, "heads": 2, "layers": 1, "encoder_layers": 1, "decoder_layers": 1}
QUICK |= {"moment_queries": 3, "batch_size": 16, "epochs": 1}
K, WEIGHTS = 3, {"l1": 10.0, "giou": 1.0, "class": 4.0, "mask": 5.0}


def small(**settings):
    """All of the stages, with dropout, and a threshold that every answer passes."""
    mines = {"mining.mine": 0.0, "mining.batch_size": 8} if "mining" in settings.get("stages", ["mining"]) else {}
    return papers.get("amr", "small", **QUICK | {"dropout": 0.1} | mines | settings)


@pytest.fixture(scope="module")
def world():
    paper = small()
    return tuple(papers.open_split(paper, "sim", split=split, n=n) for split, n in (("train", 24), ("val", 8)))


def trained(paper, data, out_dir=None, **options):
    retriever = papers.build(paper, data[0])
    history = fit(retriever, *data, paper, out_dir, device="cpu", progress=False, **options)
    return retriever, history


def contents(folder):
    """Every file and its bytes, but for the seconds that a run took."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "times.jsonl"
    }


TWICE = {"distill.epochs": 2}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run that nothing disturbed: its folder, its history, its model."""
    folder = tmp_path_factory.mktemp("whole")
    retriever, history = trained(small(**TWICE), world, folder)
    return folder, history, retriever


def digest(module):
    return hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in module.state_dict().values())).hexdigest()


def test_three_stages_leave_a_history_of_what_each_did(whole):
    """[AMR stage 2] Two models that mine, the mining, the cold start on spliced videos, the distillation on real."""
    folder, history, _ = whole
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert rows == history.rows
    of = {row["stage"]: row for row in rows}
    stages = ["mining_1", "mining_2", "mining", "coldstart", "distill"]
    assert [(r["stage"], r["epoch"]) for r in rows] == [*((stage, 1) for stage in stages), ("distill", 2)]
    counts = {"pasted", "dropped", "pasted_mined", "dropped_mined", "kept_no_donor", "kept_no_window"}
    for stage, row in of.items():
        assert {k for k in row if k.startswith("augment/")} == {
            f"augment/{name}" for name in (counts if stage == "coldstart" else ())
        }
        assert ("loss/distill" in row) == (stage == "distill")
    assert of["coldstart"]["augment/pasted"] >= 24 and of["coldstart"]["augment/pasted_mined"] > 0
    assert [of[s]["loss/discriminate"] > 0 for s in stages if s != "mining"] == [False, False, True, True]
    mined = mining.read(folder / "mining" / "wrong_spans.jsonl")
    assert of["mining"]["mined/windows"] == sum(map(len, mined)) > 0
    assert of["mining"]["mined/queries"] == sum(map(bool, mined)) / 24
    frame = history.frame()
    assert len(frame) == len(rows) and frame["train_s"].notna().all()


def test_both_models_that_mine_are_trained_on_their_own_half_alone(whole, world):
    """[AMR, mining] What they predict is of the other half."""
    folder, _, _ = whole
    halves = mining.halves(world[0], Draw(0, "mining"))
    wrong = mining.read(folder / "mining" / "wrong_spans.jsonl")
    for name, own, other in (("1", *halves), ("2", *halves[::-1])):
        settings = json.loads((folder / "mining" / name / "run.json").read_text())
        assert settings["train"]["digest"] == world[0].subset(own).digest()
        unseen, model = world[0].subset(other), checkpoint.load(folder / "mining" / name / f"mining_{name}" / "best")
        found = mining.confusing(predict_all(model, unseen, 16), unseen, 0.0)
        assert found == [wrong[i] for i in other.tolist()]


def test_mined_windows_are_in_the_batches_of_the_stages_that_follow(world, monkeypatch):
    """[AMR, splice], [AMR stage 2] Not in those of the models that mine, nor in a run that is one stage."""
    seen = []

    def watching(augment, name):
        def watched(indices, dataset, draw):
            batch = augment(indices, dataset, draw)
            wrong = batch.labels.wrong
            seen.append((draw.stage, name, wrong is not None and bool(wrong.any())))
            return batch

        return watched

    for name, augment in (("identity", identity), ("splice", splice)):
        monkeypatch.setitem(papers.AUGMENTERS, name, watching(augment, name))
    trained(small(), (world[0], None))
    told = {x for x in seen if x[0]}  # before anything, one sample is tried without a stage
    assert told == {
        ("mining_1", "identity", False),
        ("mining_2", "identity", False),
        ("coldstart", "splice", True),
        ("distill", "identity", True),
    }
    seen.clear()
    trained(small(stages=["coldstart"]), (world[0], None))
    assert {x for x in seen if x[0]} == {("coldstart", "splice", False)}


@pytest.mark.parametrize("preset", [None, "official"])
def test_the_teacher_is_the_first_stage_at_its_end_and_learns_nothing(preset, world, monkeypatch):
    """[AMR stage 2] In evaluation mode; as released it asks with queries that nobody trained."""
    make, teachers = TrainingRunner._make_teacher, []
    step, used = Trainer._train_step, {}

    def watched(runner, state):
        teacher = make(runner, state)
        teachers.append((runner.stage.name, teacher, teacher and digest(teacher), state))
        return teacher

    def watched_step(self, *rest):
        used[self.stage.name] = self.teacher
        return step(self, *rest)

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
    last, own = state.weights_of("coldstart", "last"), teacher.state_dict()
    assert last.keys() == own.keys()
    anchors = "detector.decoder.moment_queries.weight"
    assert all(torch.equal(last[name], x) for name, x in own.items() if name != anchors)
    assert torch.equal(last[anchors], own[anchors]) == (preset is None)
    assert (retriever.state_dict()[anchors] - own[anchors]).abs().max() > (0.5 if preset else 0)


@pytest.mark.parametrize("preset", [None, "official"])
def test_the_second_stage_begins_with_the_last_weights_of_the_first(preset, world, tmp_path):
    """[AMR stage 2] At a learning rate of 0 it ends with them; as released its queries are new, but one set."""
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
    trained(small(**TWICE), world, tmp_path / "again")
    again = contents(tmp_path / "again")
    assert again == contents(whole[0])
    trained(small(**TWICE), world, tmp_path / "other", seed=1)
    other = contents(tmp_path / "other")
    assert other.keys() == again.keys()
    for name in ("mining/wrong_spans.jsonl", "coldstart/last.safetensors", "distill/last.safetensors"):
        assert other[name] != again[name], name


@pytest.mark.parametrize("when", ["after every epoch", "within epochs and between"])
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(when, whole, world, tmp_path, monkeypatch):
    """First after each epoch, of mining too; then at another file every time, some sooner than an epoch lasts."""
    rename, killed = files.os.replace, []
    for attempt in range(40):
        calls = 0

        def stop(source, target, attempt=attempt):
            nonlocal calls
            calls += 1
            rename(source, target)
            at_end = target.name == "resume.safetensors"
            if at_end if when == "after every epoch" else calls == (4, 17, 11, 15, 13)[attempt % 5]:
                killed.append(str(target.relative_to(tmp_path)))
                raise KeyboardInterrupt

        monkeypatch.setattr(files.os, "replace", stop)
        try:
            _, history = trained(small(**TWICE), world, tmp_path)
        except KeyboardInterrupt:
            continue
        break
    assert contents(tmp_path) == contents(whole[0]) and history.rows == whole[1].rows
    if when == "after every epoch":
        assert killed == [f"mining/{i}/resume.safetensors" for i in (1, 2)] + 4 * ["resume.safetensors"]
    else:
        assert len(killed) > 5 and {name.split("/")[0] for name in killed} >= {"mining", "coldstart", "distill"}


def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_bytes(whole, world, tmp_path, monkeypatch):
    """[AMR stage 2] In each stage, at its second step; the teacher and the mined windows come again."""
    split, killed = torch.Tensor.split, []

    def steps(order, size, *rest):
        for i, indices in enumerate(split(order, size, *rest)):
            if i == 1:
                raise KeyboardInterrupt
            yield indices

    for stage in ("mining_1", "mining_2", "coldstart", "distill"):
        epoch = Trainer.train_epoch

        def stopped(self, *rest, stage=stage, epoch=epoch):
            with monkeypatch.context() as patch:
                if self.stage.name == stage:
                    killed.append(stage)
                    patch.setattr(torch.Tensor, "split", steps)
                return epoch(self, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_epoch", stopped)
            with pytest.raises(KeyboardInterrupt):
                trained(small(**TWICE), world, tmp_path)
    trained(small(**TWICE), world, tmp_path)
    assert killed == ["mining_1", "mining_2", "coldstart", "distill"]
    assert contents(tmp_path) == contents(whole[0])


def test_a_checkpoint_of_the_second_stage_predicts_what_the_model_did(whole, world):
    """[AMR stage 2] Twice as many windows as a set has queries."""
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
    "sets apart": ({"joint_self_attention": False}, ["mining_1", "mining_2", "mining", "coldstart", "distill"]),
    "no discrimination": (
        {"stages": ["mining", "distill"], "distill.weights": {**WEIGHTS, "discriminate": 0.0}},
        ["mining_1", "mining_2", "mining", "distill"],
    ),
    "official": ({"preset": "official"}, ["mining_1", "mining_2", "mining", "coldstart", "distill"]),
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_the_ablation_trains(arm, world):
    """[AMR, results] Baseline, augmentation, two stages, what holds the second one to the first."""
    settings, stages = ARMS[arm]
    paper = small(**settings, decoder_layers=2)
    paper = replace(paper, stages=tuple(replace(stage, epochs=1) for stage in paper.stages))
    retriever, history = trained(paper, (world[0], None))
    assert [row["stage"] for row in history.rows] == stages
    for row in history.rows:
        assert all(np.isfinite(value) for key, value in row.items() if key != "stage")
    taught = paper.stages[-1].teacher is not None
    assert ("loss/distill" in history.rows[-1]) == taught
    sets = 1 if paper.stages[-1].prepare is None else 2
    assert len(retriever.predict(world[0].batch([0]))[0]["pred_relevant_windows"]) == K * sets
    untrained = papers.build(paper, world[0])
    same = [torch.equal(untrained.state_dict()[k], v) for k, v in retriever.state_dict().items() if "original" not in k
            and "active" not in k]  # fmt: skip
    assert same.count(False) > 0.95 * len(same)


def test_a_mistaken_weight_of_a_loss_is_refused(world):
    """Without a teacher there is nothing to be held to."""
    paper = small(stages=["distill"], **{"distill.weights": {"distill": 1.0}})
    with pytest.raises(ValueError, match=r"stage 'distill' weighs \['distill'\]; the losses are"):
        trained(paper, (world[0], None))


def test_both_stages_learn_in_mixed_precision(world):
    """Two steps of each, as released too."""
    for preset in (None, "official"):
        paper = small(stages=["coldstart", "distill"], preset=preset, decoder_layers=2)
        _, history = trained(paper, (world[0], None), precision="bf16")
        assert len(history.rows) == 2
        assert all(np.isfinite(value) for row in history.rows for key, value in row.items() if key != "stage")


def second_stage(data, **settings):
    """A model of both stages of which nothing is as it was initialised; times are not rounded."""
    paper = small(round_s=None, **{"dropout": 0.0, "decoder_layers": 2} | settings)
    retriever = papers.build(paper, data)
    papers.prepare(retriever, paper.stages[-1].prepare)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in retriever.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return retriever.eval()


def numbers(lines):
    """All that is predicted, in a row."""
    return np.concatenate([[*np.ravel(x["pred_relevant_windows"]), *x["pred_saliency_scores"]] for x in lines])


@pytest.mark.parametrize("preset", [None, "official"])
def test_predictions_see_no_labels_and_mates_and_padding_only_as_released(preset, world):
    """[AMR, padding] Samples of other lengths beside it, more padding, and something on it."""
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
    apart = [np.abs(numbers(change) - numbers(lines)).max() for change in changes]
    if preset is None:
        assert max(apart) < 2e-3  # of 64 s, told to the millisecond
    else:
        assert apart[0] > 1e-2 and apart[1] > 1e-2 and apart[3] > 1e-2


def odd_videos(seed, count=560):
    """Samples of sixty videos of many lengths, with random features; some have twenty-five windows or mined ones."""
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
def test_ten_thousand_odd_samples_are_spliced_answered_and_learned_from(preset):
    """Windows that touch, overlap, are the whole video or twenty-five; videos of one clip; nothing scored or mined."""
    paper = small(width=8, hidden=8, decoder_layers=2, preset=preset)
    first, second = (papers.build(paper, Widths(6, 4, None), seed) for seed in range(2))
    papers.prepare(second, paper.stages[-1].prepare)
    seen, kinds = 0, Counter()
    for number in range(9):
        data = odd_videos(number)
        batch = (splice, identity, splice_official)[number % 3](torch.arange(len(data)), data, Draw(number))
        labels, taught = batch.labels, None
        for retriever in (first, second):
            with torch.set_grad_enabled(number % 3 == 0):
                aligned, outputs = retriever(batch)
                terms = retriever.losses(aligned, outputs, batch, taught)
                total = sum(terms.values())
            assert total.isfinite(), terms
            if number % 3 == 0:
                total.backward()
            moments = retriever.detector.decode(outputs, batch)
            assert moments.spans.isfinite().all() and (moments.spans >= 0).all() and (moments.spans <= 1).all()
            assert moments.scores.isfinite().all()
            taught = {"states": outputs["states"].detach()}
        seen += len(batch)
        kinds["twenty-five windows"] += int((labels.span_mask.sum(1) == 25).sum())
        kinds["one clip"] += int((batch.lengths == 1).sum())
        kinds["not scored"] += int((~labels.saliency_mask).sum())
        kinds["nothing mined"] += int((~labels.wrong.any(1)).sum())
        kinds["all relevant"] += int((labels.relevant == batch.target_mask).all(1).sum())
    assert seen > 5000 and all(kinds[name] > 50 for name in kinds) and len(kinds) == 5, kinds
    for retriever in (first, second):
        assert all(p.grad.isfinite().all() for p in retriever.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """QVHighlights in AMR's layout: four CLIP layers of half precision, motion features, three splits of a query."""
    root, dice = tmp_path_factory.mktemp("amr"), np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4)):
        lines = []
        for i in range(n):
            vid, clips = f"{split}{i}", 20 - i
            save_npz(root / f"slowfast_features/{vid}.npz", features=dice.standard_normal((clips, 12)).astype("f4"))
            save_npy(root / f"clip_b32_vid_k4/{vid}.npy", dice.standard_normal((clips, 4, 768)).astype("f2"))
            save_npy(root / f"clip_b32_txt_k4/{split}{i}.npy", dice.standard_normal((9, 4, 512)).astype("f4"))
            about = {"qid": f"{split}{i}", "query": "A dog runs.", "duration": 2.0 * clips, "vid": vid}
            about |= {"relevant_windows": [[4, 8]], "relevant_clip_ids": [2, 3]}
            lines.append(about | {"saliency_scores": [[4, 3, 2], [1, 0, 4]]})
        write_lines(root / f"highlight_{split}_release.jsonl", lines)
    return root


def test_files_in_the_official_layout_train_from_the_command_line(released, tmp_path, capsys):
    """[AMR, features] Mining, a step of splicing, a step of distillation; the prediction is on whole clips."""
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
    """A batch for the small networks with every label that a loss reads; the reference gets rows without padding."""
    batch = make_batch(lengths, joint=None, motion=7, words=7, query=6, seed=1, windows=windows, **options)
    g = torch.Generator().manual_seed(3)
    labels, T = batch.labels, batch.target.shape[1]
    scores = torch.randint(1, 12, (len(lengths), T), generator=g) * labels.relevant
    wrong = (torch.rand(len(lengths), T, generator=g) < 0.3) & ~labels.relevant & batch.target_mask
    wrong[1] = False  # nothing was mined here
    pairs = torch.tensor([[[3, 2], [4, 0]], [[1, 0], [2, 3]], [[11, 0], [3, 5]], [[6, 0], [1, 2]]])
    batch = replace(batch, labels=replace(labels, saliency=scores.float(), wrong=wrong, pairs=pairs))
    targets = [x[m] for x, m in zip(batch.target, batch.target_mask, strict=True)]
    queries = [x[m] for x, m in zip(batch.query, batch.query_mask, strict=True)]
    return batch, targets, queries


def saved(tmp_path, **options):
    network = random_network(make_opt(**options))
    return network, save(network, tmp_path / "model.ckpt")


def said(retriever, batch):
    aligned, outputs = retriever(batch)
    names = {"logits": "logits", "spans_cw": "spans", "quality": "iou", "masks": "masks", "states": "states"}
    return {theirs: outputs[ours] for ours, theirs in names.items()} | {"saliency": aligned.saliency}


def compare(ours, theirs, mask):
    """The masks and the saliency on real clips; elsewhere nobody reads them."""
    for name in ("logits", "spans", "iou", "states"):
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, axes in (("saliency", mask), ("masks", mask[None, :, None].expand_as(ours["masks"]))):
        torch.testing.assert_close(ours[name][axes], theirs[name][axes], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_outputs_are_those_of_the_official_network(name, stage, tmp_path):
    """[AMR stage 1], [AMR stage 2] A padded batch as released; corrected, each sample as if it were alone."""
    network, path = saved(tmp_path, stage=stage, **OPTIONS[name])
    for given in ({}, {"lengths": [3, 5, 2], "windows": None}):
        batch, targets, queries = (
            labelled_batch()
            if not given
            else (b := make_batch([3, 5, 2], joint=None, motion=7, words=11, query=6), *rows_without_padding(b))
        )
        compare(said(load_official(path, "amr"), batch), network(targets, queries), batch.target_mask)
        corrected = said(load_official(path, "amr", corrected=True), batch)
        compare(corrected, official_amr.alone(network, targets, queries), batch.target_mask)


def rows_without_padding(batch):
    pairs = ((batch.target, batch.target_mask), (batch.query, batch.query_mask))
    return [[x[m] for x, m in zip(rows, mask, strict=True)] for rows, mask in pairs]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("corrected", [False, True])
@torch.no_grad()
def test_losses_are_those_of_the_official_network(stage, corrected, tmp_path):
    """[AMR, losses] Matching by trying everything, sums by loops; every layer, every term, and what a teacher adds."""
    network, path = saved(tmp_path, stage=stage)
    batch, targets, queries = labelled_batch()
    windows = [[(s / n, e / n) for s, e in own] for own, n in zip(MOMENTS, LENGTHS, strict=True)]
    out = official_amr.alone(network, targets, queries) if corrected else network(targets, queries)
    retriever = load_official(path, "amr", corrected)
    aligned, outputs = retriever(batch)
    matched = retriever.detector.match(outputs, retriever.detector.truth(batch))
    by_layer = retriever.detector.layer_losses(outputs, batch)
    for layer in range(len(out["logits"])):
        for b, own in enumerate(windows):
            found = matching(*(out[name][layer, b] for name in ("logits", "spans", "masks")), own, LENGTHS[b])
            assert matched[layer, b].tolist() == [*found, *[-1] * (3 - len(own))]
        expected = layer_losses(out, windows, layer)
        expected["quality"] = expected.pop("iou")
        if layer == len(out["logits"]) - 1:
            expected["mask"] = 0.0  # as released
        assert {name: x[layer].item() for name, x in by_layer.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    labels = batch.labels
    expected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong)
    if corrected:  # the discrimination of the preset stays that against the video
        told = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong, corrected=True)
        expected["ctc"] = told["ctc"]
    found = {name: x.item() for name, x in retriever.aligner.losses(aligned, batch).items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if stage == "distill":
        other = random_network(make_opt(stage=stage), seed=5)
        teacher = load_official(save(other, tmp_path / "teacher.ckpt"), "amr", corrected)(batch)[1]
        their = official_amr.alone(other, targets, queries) if corrected else other(targets, queries)
        half = out["states"].shape[2] // 2
        terms = retriever.losses(aligned, outputs, batch, {"states": teacher["states"][:, :, :half]})
        assert terms["distill"].item() == pytest.approx(distill(out["states"], their["states"]), rel=1e-4)


@torch.no_grad()
def test_the_discrimination_of_the_paper_is_against_the_sentence_where_something_was_mined(tmp_path):
    """[AMR, losses] Only over the samples with mined clips."""
    network, path = saved(tmp_path)
    batch, targets, queries = labelled_batch()
    windows = [[(s / n, e / n) for s, e in own] for own, n in zip(MOMENTS, LENGTHS, strict=True)]
    labels, out = batch.labels, official_amr.alone(network, targets, queries)
    aligner = load_official(path, "amr", corrected=True).aligner
    aligner.against = "sentence"
    found = aligner.losses(aligner(batch), batch)["discriminate"].item()
    expected = clip_losses(out, windows, labels.pairs, labels.saliency, labels.wrong, corrected=True)
    assert found == pytest.approx(expected["discriminate"], rel=1e-4)


@torch.no_grad()
def test_the_released_network_sees_batch_mates_and_padding_and_ours_does_not(tmp_path):
    """[AMR, padding] So that the two ways of loading are known to differ."""
    _, path = saved(tmp_path)
    batch, _, _ = labelled_batch()
    pair = [said(load_official(path, "amr", corrected=c), batch)["spans"] for c in (False, True)]
    assert ((pair[0] - pair[1]).abs().amax((0, 2, 3)) > 1e-4).any()


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_a_loaded_model_is_saved_and_loaded_as_one_of_ours(stage, tmp_path):
    """[AMR stage 2] The second set of queries with it."""
    _, path = saved(tmp_path, stage=stage)
    batch, _, _ = labelled_batch()
    retriever = load_official(path, "amr")
    checkpoint.save(retriever, tmp_path / "ours")
    again = checkpoint.load(tmp_path / "ours")
    assert again.predict(batch) == retriever.predict(batch)
    assert len(again.predict(batch)[0]["pred_relevant_windows"]) == (4 if stage == "pretrain" else 8)


def test_a_file_that_contradicts_itself_is_refused(tmp_path):
    """[AMR stage 2] Its stage, its two copies of a head, its options."""
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
    with pytest.raises(ValueError, match=r"transformer.decoder.class_embed.weight and class_embed.weight differ"):
        load_official(save(network, path), "amr")


def test_our_parameters_are_as_many_as_released():
    """[AMR stage 1], [AMR stage 2] Without the positions of words, which nothing reads."""
    with torch.device("meta"):
        ours = papers.build(papers.get("amr"), Widths(5376, 2048, None))
        assert count(ours) + 8_704 == 11_801_641
        papers.prepare(ours, "active_queries")
    assert count(ours) + 8_704 == 13_903_933
