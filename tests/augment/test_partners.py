"""The choice of partners: the most similar other video, of equals the first, and what the release bars."""

from dataclasses import replace

import pytest
import torch

from mrlib.augment.partners import PARTNERS
from mrlib.augment.synthesize import synthesize, synthesize_official
from mrlib.data import Bank
from mrlib.ops.draw import Draw
from tests.support.worlds import world

DRAW = Draw(5, "train", 2)


@pytest.mark.parametrize(("copies", "clips"), [(3, 3), (3, 9), (37, 9)])
def test_of_equally_similar_videos_the_first_is_taken(copies, clips):
    """Copies of a video, whose similarities differ by rounding: each takes the first other copy, in any batch order."""
    data = world([clips] * copies, [(v, [(1, 2)], [], None) for v in range(copies)])
    for seed in range(5):
        rows = torch.randn(clips, 64, generator=torch.Generator().manual_seed(seed)) + 0.3
        equal_videos = replace(data, target=Bank(rows.repeat(copies, 1), data.target.offsets))
        for partners in ("similar", "table"):
            for order in (range(copies), range(copies)[::-1]):
                partner, has_partner = PARTNERS[partners](torch.tensor(order), equal_videos, DRAW)
                chosen = dict(zip(order, partner.tolist(), strict=True))
                assert has_partner.all()
                assert [chosen[i] for i in range(copies)] == [1] + [0] * (copies - 1)


@pytest.mark.parametrize(("name", "barred"), [("charades_sta", True), ("qvhighlights", False), ("sim", False)])
def test_the_release_bars_partners_that_show_the_same_except_for_qvhighlights(name, barred):
    """Videos 0 and 1 are equal, video 2 is half as similar to both."""
    data = replace(world([60] * 3, [(v, [(2, 9)], [], None) for v in range(3)]), name=name)
    rows = torch.zeros(3, 60, 2)
    rows[:2, :, 0] = 1.0
    rows[2] = torch.tensor([0.5, 0.75**0.5])
    data = replace(data, target=Bank(rows.flatten(0, 1), data.target.offsets))
    batch = synthesize_official(torch.arange(3), data, DRAW)
    partners = [s.extra["partner"] for s in batch.samples[3::2]]
    assert partners == (["v2", "v2", "v0"] if barred else ["v1", "v0", "v0"])
    assert synthesize(torch.arange(3), data, DRAW).samples[3].extra["partner"] == "v1"
