"""Settings of all tests."""

import pytest
import torch

# Tensors here are tiny: on a busy machine a second thread only waits for the first.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests first: they take longest, and what is last should not keep one process waiting."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)
