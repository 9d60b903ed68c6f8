"""What all tests share, before anything else is imported: Triton's interpreter."""

import os

import torch

# Triton asks when it is first imported, by whatever comes first: so before all others.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
