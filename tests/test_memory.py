"""Errors of a device without memory: which they are, and what they say."""

import pickle

import numpy as np
import pytest
import torch

from mrlib.memory import OutOfMemory, is_out_of_memory, naming_batch


def error_of(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    return caught.value


def test_errors_of_torch_and_numpy_are_known():
    for allocate in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        assert is_out_of_memory(error_of(allocate))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("[enforce fail] not enough memory: you tried to allocate 4 bytes."))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("you tried to allocate"))


def test_the_message_names_half_of_the_batch_size():
    with pytest.raises(OutOfMemory) as caught, naming_batch(7, 300, "in step 4", "train.batch_size"):
        torch.empty(10**15)
    expected = "out of memory in step 4: batch size 7, videos of up to 300 clips; try train.batch_size 3"
    assert str(caught.value) == expected and "allocate" in str(caught.value.__cause__)


def test_for_a_batch_of_one_the_video_is_too_long():
    with pytest.raises(OutOfMemory) as caught, naming_batch(1, 5000):
        torch.empty(10**15)
    assert str(caught.value) == (
        "out of memory: batch size 1, and the video has 5000 clips, too many for this device; search it in windows "
        "with mrlib.video.find, or give features of fewer clips"
    )


def test_the_outer_block_names_the_batch_and_other_errors_stay_as_they_are():
    inner, outer = naming_batch(4, 9), naming_batch(8, 9, "in a stage")
    with pytest.raises(OutOfMemory, match="^out of memory in a stage: batch size 8") as caught, outer, inner:
        raise MemoryError
    assert "batch size 4" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="^something else$"), naming_batch(4, 9):
        raise RuntimeError("something else")


def test_it_is_a_memory_error_and_as_that_of_torch_a_runtime_error():
    error = pickle.loads(pickle.dumps(OutOfMemory("none left")))
    assert isinstance(error, MemoryError) and isinstance(error, RuntimeError) and str(error) == "none left"
