"""The file from which a run goes on: whole, or refused with its name and a way out."""

import json
import math
import re

import pytest
import safetensors.torch
import torch
from torch import nn

from mrlib.training import resuming
from mrlib.training.resuming import Progress, Resumed

NOTE = {"stage": 1, "epoch": 1, "done": 7, "rows": [{"stage": "train", "epoch": 1, "step": 3, "loss": 0.1}]}
EPOCHS = [1, 3]
CURE = "; delete this file to train from the start, or give another out_dir$"


def stepped(fused=True):
    """A model and its optimiser after a step in which the bias had no gradient."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), fused=fused)
    (model.weight.square().sum()).backward()
    optimiser.step()
    return model, optimiser


@pytest.fixture
def file(tmp_path):
    model, optimiser = stepped()
    resuming.write(tmp_path / "resume.safetensors", NOTE, [], model.state_dict(), optimiser)
    return tmp_path / "resume.safetensors"


def rewritten(file, change=None, note=None, metadata=None):
    """Write the file anew as an earlier version did, without a checksum, with some of it changed."""
    tensors = safetensors.torch.load_file(file)
    if change is not None:
        change(tensors)
    text = json.dumps(NOTE if note is None else note)
    file.write_bytes(safetensors.torch.save(tensors, {"note": text} if metadata is None else metadata))


def restored(file):
    model, optimiser = nn.Linear(3, 2), None
    resumed = Resumed(file, EPOCHS)
    resumed.restore_weights(model)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    resumed.restore_optimiser(optimiser)
    return resumed, model, optimiser


@pytest.mark.parametrize("earlier", [False, True])
def test_weights_optimiser_and_note_are_restored(earlier, file):
    if earlier:
        rewritten(file)
    resumed, model, optimiser = restored(file)
    expected, before = stepped()
    assert {k: resumed.note[k] for k in NOTE} == NOTE and resumed.part() == Progress()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    states = optimiser.state_dict()["state"], before.state_dict()["state"]
    assert states[0].keys() == states[1].keys() == {0}
    assert all(torch.equal(states[0][0][k], states[1][0][k]) for k in states[1][0])


def test_a_run_begun_with_an_optimiser_that_was_not_fused_goes_on(tmp_path):
    """Its state has the same names and shapes; the next step is that of the plain optimiser, up to rounding."""
    model, plain = stepped(fused=False)
    resuming.write(tmp_path / "resume.safetensors", NOTE, [], model.state_dict(), plain)
    _, restored_model, fused = restored(tmp_path / "resume.safetensors")
    assert fused.param_groups[0]["fused"]
    for each, optimiser in ((model, plain), (restored_model, fused)):
        optimiser.zero_grad()
        each.weight.cos().sum().backward()
        optimiser.step()
    torch.testing.assert_close(restored_model.weight, model.weight, rtol=1e-6, atol=0)
    assert fused.state_dict()["state"][0]["step"] == 2


def test_each_rank_gets_its_part_of_an_epoch_and_other_ranks_the_mean(file, monkeypatch):
    parts = [Progress(2, {"loss": 0.1 + 0.2}, {"cut": 3}), Progress(2, {"loss": 0.5}, {"cut": 3})]
    model, optimiser = stepped()
    resuming.write(file, NOTE, parts, model.state_dict(), optimiser)
    for rank in range(2):
        monkeypatch.setattr(resuming.parallel, "rank_and_world", lambda rank=rank: (rank, 2))
        assert Resumed(file, EPOCHS).part() == parts[rank]
    monkeypatch.setattr(resuming.parallel, "rank_and_world", lambda: (0, 1))
    assert Resumed(file, EPOCHS).part() == Progress(2, {"loss": (0.1 + 0.2 + 0.5) / 2}, {"cut": 3})


def test_progress_adds_steps():
    progress = Progress()
    for loss in (0.1, 0.2):
        progress.add({"loss": loss}, {"cut": 2})
    assert progress == Progress(2, {"loss": 0.1 + 0.2}, {"cut": 4})


@pytest.mark.parametrize(
    "note",
    [
        [],
        None,
        "x",
        *({k: v for k, v in NOTE.items() if k != name} for name in NOTE),
        *(NOTE | {name: value} for name in ("stage", "epoch", "done") for value in (-1, 1.0, "1", None, True)),
        NOTE | {"stage": 3},
        NOTE | {"epoch": 4},
        NOTE | {"stage": 2},
        *(NOTE | {"rows": rows} for rows in (None, {}, [1], [{}], [{"stage": "train", "epoch": "1"}])),
        NOTE | {"rows": [NOTE["rows"][0] | {"loss": None}]},
        *(NOTE | {"part": part} for part in (None, [1], [{}], [{"steps": 1, "sums": {"a": "b"}, "counts": {}}])),
        NOTE | {"tensors": 4},
    ],
)
def test_a_damaged_note_is_refused(note, file):
    rewritten(file, metadata={"note": json.dumps(note)})
    with pytest.raises(ValueError, match=f"resume.safetensors.* its note must be .*{CURE}"):
        Resumed(file, EPOCHS)


@pytest.mark.parametrize("text", ["", "{", 100_000 * "[", "1" * 5000])
def test_a_note_that_is_no_json_is_refused(text, file):
    rewritten(file, metadata={"note": text})
    with pytest.raises(ValueError, match=f"resume.safetensors: note.*{CURE}"):
        Resumed(file, EPOCHS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.weight", None, "it lacks model.weight"),
        ("model.weight", torch.zeros(2, 4), "it has model.weight of shape (2, 4) for (2, 3)"),
        ("model.weight", torch.zeros(2, 3, dtype=torch.int8), "of type I8 for F32"),
        ("model.other", torch.zeros(1), "it has an unknown model.other"),
        ("model.weight", torch.full((2, 3), math.nan), "model.weight has numbers that are NaN"),
        ("optimiser.0.exp_avg", None, "it lacks optimiser.0.exp_avg"),
        ("optimiser.0.exp_avg", torch.zeros(6), "it has optimiser.0.exp_avg of shape (6,) for (2, 3)"),
        ("optimiser.0.step", torch.zeros(1), "it has optimiser.0.step of shape (1,) for ()"),
        ("optimiser.2.exp_avg", torch.zeros(1), "it has an unknown optimiser.2.exp_avg"),
        ("optimiser.x", torch.zeros(1), "it has an unknown optimiser.x"),
        ("optimiser", None, "it lacks the state of the optimiser"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, value, message, file):
    def change(tensors):
        for each in [k for k in tensors if k.startswith(name)]:
            del tensors[each]
        if value is not None:
            tensors[name] = value

    rewritten(file, change)
    with pytest.raises(ValueError, match=f"resume.safetensors.*{re.escape(message)}.*{CURE}"):
        restored(file)


def test_a_file_that_lost_a_tensor_is_noticed_although_the_rest_fits(file):
    """The bias of this model has no state, so only the number of tensors tells that the weight had one."""
    tensors = safetensors.torch.load_file(file)
    model, optimiser = stepped()
    model.bias.grad = torch.ones(2)
    optimiser.step()
    resuming.write(file, NOTE, [], model.state_dict(), optimiser)
    note = json.loads(Resumed(file, EPOCHS).note and json.dumps(Resumed(file, EPOCHS).note))
    file.write_bytes(safetensors.torch.save(tensors, {"note": json.dumps(note)}))
    with pytest.raises(ValueError, match="the number of its tensors"):
        Resumed(file, EPOCHS)


def test_any_flipped_bit_is_noticed(file):
    whole = file.read_bytes()
    for i in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"resume.safetensors.*{CURE}"):
            Resumed(file, EPOCHS)
