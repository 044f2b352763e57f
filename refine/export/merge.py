"""The order-dependent merge of `refine.fusion.merge`, as one loop that exporters keep."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.export.cells import Cells
from refine.export.loops import Tensors, while_loop


def merge(
    cells: Cells,
    areas: Tensor,
    order: Tensor,
    alive: Tensor,
    front: Tensor | None,
    overlap_threshold: Tensor,
    recheck: bool,
) -> Tensor:
    """Assign each cell to one of the K instances that cover it; see `refine.fusion.merge.merge`.

    Args:
        cells: partition of the image.
        areas: pixels of each mask, Tensor[K] int64.
        order: indices of the instances in the order of pasting, Tensor[K] int64.
        alive: instances that take part, Tensor[K] bool.
        front: Tensor[K, K] bool, [i, j] = "i lies in front of j", or None if only the order matters.
        overlap_threshold: see `FusionConfig`, Tensor[] float64.
        recheck: see `FusionConfig`; only with `front`.

    Returns:
        Index of the owner of each cell, or K for none, Tensor[A] int64.
    """
    count = order.shape[0]
    claims = torch.zeros(count, count, dtype=torch.bool) if front is None else front
    claims = torch.cat([claims, torch.ones_like(claims[:, :1])], 1)
    pairwise = front is not None
    again = recheck and pairwise

    def running(n: Tensor, owner: Tensor, alive: Tensor, *used: Tensor) -> Tensor:
        return n < alive.shape[0] + (1 if again else 0)

    def step(n: Tensor, owner: Tensor, alive: Tensor, *used: Tensor) -> Tensors:
        order, covered, claims, cell_areas, areas, overlap_threshold = used
        count = alive.shape[0]
        mask = order.index_select(0, n.clamp(max=count - 1)[None])  # Tensor[1]
        taken = covered[mask][0] & claims[mask][0][owner] & alive[mask]
        kept, area = torch.where(taken, cell_areas, 0).sum(), areas[mask]
        missing, allowed = (area - kept).double(), overlap_threshold * area
        enough = (kept > 0) & (((missing < allowed) | (missing == 0)) if pairwise else (missing <= allowed))
        pasted = torch.where(taken & enough, mask, owner)
        if not again:
            return n + 1, pasted, alive.clone()
        # After the last instance: remove the one that later ones covered most, and start again.
        held = torch.zeros(count + 1, dtype=torch.int64).scatter_add(0, owner, cell_areas)[:-1]
        lost = (areas - held).double()
        overwritten = (held > 0) & (lost > 0) & (lost >= overlap_threshold * areas)
        share = torch.where(overwritten, held.double() / areas.clamp(min=1), torch.inf)
        restart = (n >= count) & overwritten.any()
        removed = restart & (torch.arange(count) == share.argmin())
        owner = torch.where(restart, count, torch.where(n >= count, owner, pasted))
        return torch.where(restart, 0, n + 1), owner, alive & ~removed

    state = (torch.zeros((), dtype=torch.int64), torch.full_like(cells.areas, count), alive)
    used = (order, cells.covers.T.contiguous(), claims, cells.areas, areas, overlap_threshold)
    return while_loop(running, step, state, used)[1]


def paste_order(scores: Tensor, areas: Tensor, labels: Tensor) -> Tensor:
    """Sort instances by decreasing score, then by decreasing area, class and index: Tensor[N] each -> Tensor[N].

    By comparing all pairs, because not every runtime keeps the order of equal elements when it sorts.
    """
    index = torch.arange(scores.shape[0])
    before = torch.zeros_like(index[:, None] < index)
    for key in (index, labels, -areas, -scores):  # the last one counts most
        before = (key < key[:, None]) | ((key == key[:, None]) & before)
    return torch.zeros_like(index).scatter(0, before.sum(1), index)
