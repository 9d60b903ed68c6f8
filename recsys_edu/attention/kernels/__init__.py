"""Kernels: attention that reads memory once, each beside the form it must equal.

==========================  ==========================================  ==========
function                    what                                        clock
==========================  ==========================================  ==========
:func:`xor_attend`          links and events read each other            request
:func:`candidate_attention` M candidates read N keys that they share    candidate
:func:`fuse_links`          an item's row of the index times the links  candidate
==========================  ==========================================  ==========

``form="reference"`` is the definition, in plain PyTorch. ``form="auto"`` takes the
Triton kernel for tensors on a GPU and the reference elsewhere, so that what is written
with these functions runs on any machine. With ``TRITON_INTERPRET=1`` in the environment
before Triton is imported, ``form="triton"`` runs on the CPU too, slowly, in Triton's
interpreter: that is how the kernels are tested where there is no GPU. What a kernel
does and moves is in :mod:`recsys_edu.cost.kernels`.
"""

from recsys_edu.attention.kernels.candidates import attend_shared, candidate_attention
from recsys_edu.attention.kernels.forms import Form
from recsys_edu.attention.kernels.links import fuse_links
from recsys_edu.attention.kernels.xor import xor_attend

__all__ = [
    "Form",
    "attend_shared",
    "candidate_attention",
    "fuse_links",
    "xor_attend",
]
