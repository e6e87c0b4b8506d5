"""A graph's edges in the two orders a convolution needs: by receiver (sums), by sender (derivatives)."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_index, check_tensors


class EdgeOrder(NamedTuple):
    """
    Edges, sorted by receiver and by sender. All tensors are int64 and on one device.

    Attributes:
        sender: ``[n_edges]`` node each edge comes from.
        receiver: ``[n_edges]`` node each edge goes to.
        n_senders: Number of nodes edges may come from.
        n_receivers: Number of nodes edges may go to.
        by_receiver: ``[n_edges]`` edges sorted by receiver (stable).
        receiver_ptr: ``[n_receivers + 1]`` where each receiver's edges start in ``by_receiver``.
        by_sender: ``[n_edges]`` edges sorted by sender (stable).
        sender_ptr: ``[n_senders + 1]`` where each sender's edges start in ``by_sender``.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import sort_edges
        >>> sender, receiver = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 0])  # water: O, H, H
        >>> edges = sort_edges(sender, receiver, n_nodes=3)
        >>> edges.by_receiver  # oxygen receives edges 2 and 3, the hydrogens 0 and 1
        tensor([2, 3, 0, 1])
        >>> edges.receiver_ptr
        tensor([0, 2, 3, 4])
    """

    sender: Tensor
    receiver: Tensor
    n_senders: int
    n_receivers: int
    by_receiver: Tensor
    receiver_ptr: Tensor
    by_sender: Tensor
    sender_ptr: Tensor

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The tensors that the operators take."""
        return self.sender, self.by_receiver, self.receiver_ptr, self.by_sender, self.sender_ptr


def _sorted(nodes: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    values, order = torch.sort(nodes, stable=True)
    return order, torch.searchsorted(values, torch.arange(n_nodes + 1, device=nodes.device))


def sort_edges(sender: Tensor, receiver: Tensor, n_nodes: int, n_receivers: int | None = None) -> EdgeOrder:
    """
    Sort a graph's edges for `channelwise_conv`. Does not synchronise a GPU with the host.

    Args:
        sender: ``[n_edges]`` int64, in any order.
        receiver: ``[n_edges]`` int64.
        n_nodes: Number of nodes that edges may come from.
        n_receivers: Number of nodes that edges may go to; ``n_nodes`` if None.

    Raises:
        TypeError: for indices that are not int64.
        ValueError: for shapes that do not match, tensors on different devices, and on a CPU for indices
            out of range.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import sort_edges
        >>> sender, receiver = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 0])  # water: O, H, H
        >>> edges = sort_edges(sender, receiver, n_nodes=3)
        >>> edges.receiver_ptr.diff()  # number of neighbours of each atom
        tensor([2, 1, 1])
    """
    n_receivers = n_nodes if n_receivers is None else n_receivers
    check_tensors("sort_edges", sender=sender, receiver=receiver)
    if sender.ndim != 1 or receiver.shape != sender.shape:
        shapes = f"{list(sender.shape)} and {list(receiver.shape)}"
        raise ValueError(f"sort_edges: sender and receiver must be [n_edges], got {shapes}")
    check_index("sort_edges", "sender", sender, n_nodes, "nodes")
    check_index("sort_edges", "receiver", receiver, n_receivers, "nodes")
    sender, receiver = sender.contiguous(), receiver.contiguous()
    by_receiver, receiver_ptr = _sorted(receiver, n_receivers)
    by_sender, sender_ptr = _sorted(sender, n_nodes)
    tables = by_receiver, receiver_ptr, by_sender, sender_ptr
    return EdgeOrder(sender, receiver, n_nodes, n_receivers, *tables)
