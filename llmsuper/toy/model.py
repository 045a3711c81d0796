"""The toy model y = ReLU(W Wᵀ x + b): its loss and gradient for many runs at once, and for samples that are mostly zero.

Parameters of G runs are one tensor θ (G, n, m + 1): the columns of W, then b. With the rows h = Wᵀx of a step's samples, and a 1
behind each, everything dense is three products with A = ReLU(h θᵀ), (G, R, n):

    forward A = h θᵀ      gradient of the decoder and of b: hᵀ A      gradient of h: A θ

The derivative of Σ (y − x)² is 2 (y − x) where y > 0 and 0 elsewhere. Where a feature is not active x = 0, so it is 2A as A
stands; only the few active entries of A are corrected. h itself, and the encoder's gradient, are sums over active features
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from llmsuper.toy.data import Samples


class Room:
    """Memory for A, kept from step to step: fresh pages for a tensor of this size cost as much as a product."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    def take(self, runs: int, rows: int, n: int, like: torch.Tensor) -> torch.Tensor:
        """(runs, rows, n), uninitialised."""
        import torch

        size = runs * rows * n
        if self._memory is None or self._memory.numel() < size:
            self._memory = torch.empty(size + size // 16, dtype=like.dtype, device=like.device)
        return self._memory[:size].view(runs, rows, n)


def forward(theta: torch.Tensor, samples: Samples, room: Room) -> tuple[torch.Tensor, torch.Tensor]:
    """h with the row's weight behind it (G, R, m + 1), and y = ReLU(W h + b) times that weight (G, R, n)."""
    import torch

    runs, n, k = theta.shape
    h = _bags(samples.feature, theta.reshape(runs * n, k), samples.row_starts, samples.value)
    h = h.view(runs, samples.rows, k)
    h[:, :, -1] = samples.weight
    y = torch.bmm(h, theta.transpose(1, 2), out=room.take(runs, samples.rows, n, theta))
    return h, y.clamp_min_(0)


def loss_and_gradient(
    theta: torch.Tensor, samples: Samples, batch: int, room: Room, *, with_loss: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The loss (G,), a sum over features and a mean over `batch` samples, if wanted; and its gradient (G, n, m + 1)."""
    import torch

    k = theta.shape[2]
    h, y = forward(theta, samples, room)
    flat = y.view(-1)
    y_active = flat[samples.place]
    loss = _row_losses(y, samples, y_active).sum(dim=1) / batch if with_loss else None
    flat[samples.place] = torch.where(y_active > 0, y_active - samples.value, 0.0)
    gradient = torch.bmm(h.transpose(1, 2), y).transpose(1, 2).contiguous()
    slope = torch.bmm(y, theta)  # (G, R, m + 1), of which the last is of no use
    slope[:, :, -1] = 0
    encoder = _bags(samples.row_by_feature, slope.view(-1, k), samples.feature_starts, samples.value_by_feature)
    gradient += encoder.view_as(gradient)
    return loss, gradient.mul_(2 / batch)


def sample_losses(theta: torch.Tensor, samples: Samples, room: Room) -> tuple[torch.Tensor, torch.Tensor]:
    """(G,) float64 sums over samples of the loss, and of its square."""
    _, y = forward(theta, samples, room)
    losses, counts = _row_losses(y, samples, y.view(-1)[samples.place]).double(), samples.weight.double().square()
    # the row without anything active holds the sum of `count` equal losses
    return losses.sum(dim=1), (losses.square() / counts.clamp_min(1)).sum(dim=1)


def _row_losses(y: torch.Tensor, samples: Samples, y_active: torch.Tensor) -> torch.Tensor:
    """(G, R) Σᵢ (yᵢ − xᵢ)² = Σᵢ yᵢ² + Σ_active (xᵢ² − 2 xᵢ yᵢ)."""
    import torch

    x = samples.value
    correction = torch.zeros(y.shape[0] * y.shape[1], dtype=y.dtype, device=y.device)
    correction = correction.index_add_(0, samples.row, x * (x - 2 * y_active))
    squares: torch.Tensor = torch.linalg.vector_norm(y, dim=2).square()
    return squares + correction.view(y.shape[:2])


def _bags(index: torch.Tensor, table: torch.Tensor, starts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(bags, k): row b is Σ weight · table[index] over the entries of bag b; ten times as fast as `index_add_` on a CPU."""
    from torch.nn.functional import embedding_bag

    bags: torch.Tensor = embedding_bag(index, table, starts, mode="sum", per_sample_weights=weight)
    return bags
