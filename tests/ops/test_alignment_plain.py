"""The plain recursion, cell by cell and by enumeration; it is taken where numba is missing."""

import sys

import torch

from mrlib.ops import alignment, alignment_plain


def test_without_numba_the_plain_way_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "mrlib.ops.alignment_cpu", raising=False)
    assert alignment._way(torch.zeros(1, 1, 1)) is alignment_plain
