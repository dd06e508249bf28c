"""Settings of all tests."""

import torch

# Tensors here are tiny: on a busy machine a second thread only waits for the first.
torch.set_num_threads(1)
