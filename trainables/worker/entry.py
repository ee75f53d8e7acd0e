"""The first thing that a worker of a slot does: see whether its node holds what the driver holds.

Before anything is imported that another version could break in a way nobody can read. The driver
has asked all nodes that were there when the run began; a node that came later is asked here.
"""

from __future__ import annotations

import socket

import ray.train

from trainables.versions import differences, installed
from trainables.worker.messages import SlotConfig


def serve_if_fit(config: dict[str, SlotConfig]) -> str | None:
    """:func:`trainables.worker.serve.serve` where the versions are those of ``config["slot"]``.

    Else, on all ranks, at once: why this group is of no use, in one line. Returned and not
    raised, because Ray Train would start a group that fails on the same node again, for ever.
    """
    slot = config["slot"]
    unfit = _from_all(differences(slot.versions, installed(), socket.gethostname()))
    if unfit:
        return "; ".join(dict.fromkeys(unfit))
    from trainables.worker.serve import serve

    serve(slot)
    return None


def _from_all(lines: list[str]) -> list[str]:
    size = ray.train.get_context().get_world_size()
    if size == 1:
        return lines
    import torch
    import torch.distributed
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else NCCL gathers on the first device of every node
    gathered: list[list[str]] = [[] for _ in range(size)]
    torch.distributed.all_gather_object(gathered, lines)
    return [line for one_rank in gathered for line in one_rank]
