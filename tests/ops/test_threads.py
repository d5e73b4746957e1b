"""The parts of a kernel: they cover every index once, in any number of threads."""

import pytest

from mrlib.ops.threads import in_threads


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_each_index_is_in_one_part(threads, count):
    parts = []
    in_threads(threads, count, lambda first, stop, record: record.append((first, stop)), parts)
    assert len(parts) == threads
    assert sorted(i for first, stop in parts for i in range(first, stop)) == list(range(count))


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_in_a_part_is_raised(bad):
    def kernel(first, stop):
        if first == bad:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_threads(3, 3, kernel)
