"""Fused link scoring: an item's row of the link index, times the user's links."""

from __future__ import annotations

from torch import Tensor

from recsys_edu.attention.kernels.forms import Form, backward_asked, takes_triton


def fuse_links(
    weights: Tensor,
    items: Tensor,
    links: Tensor,
    *,
    scale: Tensor | None = None,
    form: Form = "auto",
) -> Tensor:
    """Candidate clock: h[m] = sum over j of W[item[m], j] L^P[j], O(r d) a candidate.

    The reference looks the rows up, which writes [B, M, r], and multiplies, which reads
    it. The kernel multiplies a block of rows as it gathers them. It is for serving: it
    passes no gradient, and "auto" takes the reference where one is asked for.

    **That a row is in the table is the caller's to see to**, as
    :class:`~recsys_edu.scoring.link_index.LinkIndex` does, which has a row of NaN for
    items that it does not hold. What comes of a number outside of the table is
    undefined.

    **Bytes**: :func:`~recsys_edu.cost.kernels.fuse_links_cost`.

    Args:
        weights: [I, r] the table of a link index, on the device of the links: a float
            type, or int8 with its ``scale``. Rows are taken to the type of the links.
        items: [B, M] int64.
        links: [B, r, d] L^P, of float32, bfloat16 or float16 for the kernel.
        scale: [I] float32, what a row of an int8 table is multiplied with.
        form: see :mod:`recsys_edu.attention.kernels`.

    Returns:
        [B, M, d] in the type of the links.

    Raises:
        ValueError: ``form`` is "triton" and it cannot run here.
    """
    if takes_triton(form, links, obstacle=backward_asked(weights, links)):
        from recsys_edu.attention.kernels.links_triton import launch

        return launch(weights, items, links, scale)
    rows = weights[items]
    if scale is not None:
        rows = rows * scale[items].unsqueeze(-1)
    return rows.to(links.dtype) @ links
