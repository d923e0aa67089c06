"""How weights are changed: orthogonalized steps for kernels, Adam for the rest."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import Parameter

FEWEST = 16
"""Rows and columns from which a kernel's steps are worth orthogonalizing."""
DECAY = 0.1
"""Share of a kernel taken off in a step, over its learning rate: the few images are seen many times."""
RATIO = 8.0
"""Learning rate of the kernels over that of the rest."""
MOMENTUM = 0.95
TOGETHER = 32
"""Kernels are orthogonalized together whose shorter sides are equal, rounded up to multiples of this."""
POLYNOMIAL = 3.4445, -4.7750, 2.0315
"""Of odd powers, which takes singular values near 1 in five iterations (Jordan et al. 2024)."""


class Optimizer:
    """Muon (Jordan et al. 2024) for convolution kernels, taken as matrices, and Adam for all else.

    Orthogonalized, a step changes all directions of a kernel alike, also those of small gradients. Here it
    needs about half the steps of Adam alone. (PyTorch's takes one kernel after another: on kernels as small
    as these five times as long.)
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        kernels = [p for p in parameters if p.ndim == 4 and min(len(p), p[0].numel()) >= FEWEST]
        kernels.sort(key=_side)
        self._groups = [_Group(list(alike)) for _, alike in groupby(kernels, _side)]
        others = [p for p in parameters if all(p is not kernel for kernel in kernels)]
        self._adam = torch.optim.Adam(others, betas=(0.9, 0.99), fused=True)

    def step(self, learning_rate: float) -> None:
        """Take a step along the gradients, then forget them."""
        for group in self._groups:
            group.step(RATIO * learning_rate)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()  # type: ignore[no-untyped-call]
        self._adam.zero_grad()


class _Group:
    """Kernels orthogonalized together: as matrices, lying, and filled up with zeros to the largest."""

    def __init__(self, kernels: list[Parameter]) -> None:
        self.kernels, self.matrices = kernels, [_lying(kernel.detach()) for kernel in kernels]
        sides = [max(lengths) for lengths in zip(*(m.shape for m in self.matrices), strict=True)]
        self.gradients = kernels[0].new_zeros(len(kernels), *sides)
        self.momentum = torch.zeros_like(self.gradients)
        ratios = [math.sqrt(max(1.0, len(kernel) / kernel[0].numel())) for kernel in kernels]
        self.ratios = kernels[0].new_tensor(ratios)[:, None, None]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        given = [
            k.grad.contiguous(memory_format=torch.channels_last) for k in self.kernels if k.grad is not None
        ]
        torch._foreach_copy_(self._parts(self.gradients), [_lying(gradient) for gradient in given])
        self.momentum.lerp_(self.gradients, 1 - MOMENTUM)
        steps = orthogonalized(self.gradients.lerp(self.momentum, MOMENTUM)).mul_(rate * self.ratios)
        torch._foreach_mul_(self.matrices, 1 - rate * DECAY)
        torch._foreach_sub_(self.matrices, self._parts(steps))
        for kernel in self.kernels:
            kernel.grad = None

    def _parts(self, filled: Tensor) -> list[Tensor]:
        """Show what belongs to each kernel."""
        return [whole[: len(m), : m.shape[1]] for whole, m in zip(filled, self.matrices, strict=True)]


def orthogonalized(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (n, rows, columns), no higher than wide, near 1.

    All iterations multiply from the left by polynomials of X Xᵀ, so they are done on these small squares.
    """
    a, b, c = POLYNOMIAL
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    gram, product = x @ x.mT, torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    for _ in range(5):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = torch.baddbmm(product, factor, product, beta=a)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        gram = factor @ gram @ factor
    return product @ x


def _lying(kernel: Tensor) -> Tensor:
    """Show a kernel in channels-last memory as a matrix, no higher than wide, of the same memory."""
    matrix = kernel.permute(0, 2, 3, 1).view(len(kernel), -1)
    return matrix if len(matrix) <= matrix.shape[1] else matrix.T


def _side(kernel: Tensor) -> int:
    return -(-min(len(kernel), kernel[0].numel()) // TOGETHER)
