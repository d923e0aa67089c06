"""How weights are changed: orthogonalized steps for kernels, Adam for the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

FEWEST = 16
"""Rows and columns from which a kernel's steps are worth orthogonalizing."""
DECAY = 0.1
"""Share of a kernel taken off in a step, over its learning rate: the few images are seen many times."""
RATIO = 8.0
"""Learning rate of the kernels over that of the rest."""


class Optimizer:
    """Muon (Jordan et al. 2024) for convolution kernels, taken as matrices, and Adam for all else.

    Orthogonalized, a step changes all directions of a kernel alike, also those of small gradients. Here it
    needs about half the steps of Adam alone.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        kernels = [p for p in parameters if p.ndim == 4 and min(len(p), p[0].numel()) >= FEWEST]
        kernels = kernels or [max(parameters, key=lambda p: (p.ndim, p.numel()))]  # Muon wants one
        chosen = {id(p) for p in kernels}
        self._kernels = [(p, Parameter(_as_matrix(p.detach()))) for p in kernels]
        self._muon = torch.optim.Muon([matrix for _, matrix in self._kernels], weight_decay=DECAY)
        self._adam = torch.optim.Adam([p for p in parameters if id(p) not in chosen], betas=(0.9, 0.99))

    def step(self, learning_rate: float) -> None:
        """Take a step along the gradients, then forget them."""
        for kernel, matrix in self._kernels:
            assert kernel.grad is not None
            matrix.grad = _as_matrix(kernel.grad)
        for optimizer, rate in ((self._muon, RATIO * learning_rate), (self._adam, learning_rate)):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
        for kernel, _ in self._kernels:
            kernel.grad = None


def _as_matrix(kernel: Tensor) -> Tensor:
    """Show a kernel in channels-last memory as a matrix (outputs, all else) of the same memory."""
    return kernel.permute(0, 2, 3, 1).flatten(1)
