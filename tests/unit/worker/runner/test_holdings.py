"""What counts as a lack of memory when a shard is loaded."""

import pytest

from paceline_worker.runner.holdings import is_allocation_fault


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("[malloc] Unable to allocate 68719476736 bytes."),
        RuntimeError(
            "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size"
        ),
        RuntimeError("cudaMallocManaged(&data, size) failed: out of memory"),
    ],
)
def test_failed_allocation_is_told_from_other_faults(error: Exception) -> None:
    assert is_allocation_fault(error)


@pytest.mark.parametrize("error", [RuntimeError("[load_safetensors] Invalid json header length"), ValueError("malloc")])
def test_other_faults_of_loading_are_no_lack_of_memory(error: Exception) -> None:
    assert not is_allocation_fault(error)
