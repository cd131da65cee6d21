"""PHI-S: targets of several teachers, each turned and scaled so that every channel has a variance of 1.

Ranzinger et al. 2024, arXiv 2410.01680. With the covariance U diag(e) U' of a teacher's features, a = 1 / sqrt(mean e)
and a Hadamard matrix H with unit rows, features x become W (x - mean) with W = a H U'. It is a rotation and one scale:
no direction weighs more than it did, a squared error is a^2 times that of the features, and teachers of any scale count
alike. Eigenvectors have no sign of their own, so W is made once and kept, never made again.
Shapes: N rows on this rank, D width.  Collectives: sums over ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.parallel.collectives import sum_ranks


@torch.no_grad()
def moments(x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean [D] and unbiased covariance [D, D] of rows x [N, D] of all ranks, in fp64.

    Rows outside `keep` (bool [N]) are left out.
    """
    x = x.double()
    here = x.new_ones(len(x), 1) if keep is None else keep.to(x.dtype)[:, None]  # [N, 1]
    count = sum_ranks(here.sum())
    mean = sum_ranks(x.mul(here).sum(0)) / count.clamp(min=1)
    centered = (x - mean) * here
    return mean, sum_ranks(centered.T @ centered) / (count - 1).clamp(min=1)


@torch.no_grad()
def phi_s(covariance: Tensor, vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return W [D, D] and the scale a of a covariance [D, D]; its eigenvectors as columns [D, D], where given."""
    values, axes = torch.linalg.eigh(covariance)  # ascending
    if vectors is not None:
        axes = vectors.to(covariance)
    else:  # of the two directions the one whose largest entry is positive
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scale = values.clamp(min=0).mean().rsqrt()
    return scale * hadamard(len(covariance)).to(covariance) @ axes.T, scale


def hadamard(size: int) -> Tensor:
    """Return an orthogonal matrix whose entries are all +-1 / sqrt(size), float64 [D, D].

    Sylvester's for powers of 2, else Sylvester's of the largest power that leaves a size of Paley's, times Paley's. For
    other sizes, such as those that 4 does not divide: a random orthogonal matrix, always the same.
    """
    power = size & -size  # the largest power of 2 that divides it
    if power == size:
        return sylvester(size) / size**0.5
    while power:
        paley = paley_one(size // power)
        if paley is None:
            paley = paley_two(size // power)
        if paley is not None:
            return torch.kron(sylvester(power), paley) / size**0.5
        power //= 2
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return torch.linalg.qr(drawn).Q


def sylvester(size: int) -> Tensor:
    """Return Sylvester's matrix of a power of 2, entries +-1."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def paley_one(size: int) -> Tensor | None:
    """Return Paley's first matrix, for one more than a prime that is 3 modulo 4; None for other sizes."""
    prime = size - 1
    if prime % 4 != 3 or not is_prime(prime):
        return None
    matrix = torch.ones(size, size, dtype=torch.float64)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = residues(prime) + torch.eye(prime, dtype=torch.float64)
    return matrix


def paley_two(size: int) -> Tensor | None:
    """Return Paley's second matrix, for twice one more than a prime that is 1 modulo 4; None for other sizes."""
    prime = size // 2 - 1
    if size % 2 or prime % 4 != 1 or not is_prime(prime):
        return None
    core = torch.ones(size // 2, size // 2, dtype=torch.float64)
    core[0, 0] = 0
    core[1:, 1:] = residues(prime)
    signs, diagonal = ([[1.0, 1.0], [1.0, -1.0]], [[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(core, core.new_tensor(signs)) + torch.kron(
        torch.eye(size // 2, dtype=torch.float64), core.new_tensor(diagonal)
    )


def residues(prime: int) -> Tensor:
    """Return the quadratic character of i - j, float64 [prime, prime]: 1 for squares, -1 for others, 0 for 0."""
    squares = {n * n % prime for n in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, prime)])
    places = torch.arange(prime)
    return character.double()[(places[:, None] - places) % prime]


def is_prime(number: int) -> bool:
    """Return whether a number is a prime."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
