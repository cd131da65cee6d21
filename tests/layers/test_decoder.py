"""The positions that a decoder adds, beside those of the encoder and beside the formula."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multissl.contract.plans import StreamSpec
from multissl.layers.decoder import Decoder
from multissl.layers.positions import Position
from multissl.layers.tokenizers import GridTokenizer

DIM, SIDES = 8, (2, 3)
GRID = StreamSpec(kind="grid", shape=(3, 8, 12), patch=(4, 4), num_tokens=6)
SEEN, WANTED = torch.tensor([[1, 3], [5, 0]]), torch.tensor([[0, 2, 4, 5], [1, 2, 3, 4]])


def lay_positions(spec: StreamSpec, first: bool) -> tuple[Decoder, Tensor]:
    """A decoder whose tokens are all 0 before positions are added, and what it lays out for its blocks."""
    decoder = Decoder.Config(dim=DIM, depth=1, heads=2).build(5, spec)
    for parameter in (*decoder.embed.parameters(), decoder.mask_token):
        nn.init.zeros_(parameter)
    return decoder, decoder.assemble(
        torch.randn(2, 2, 5), SEEN, WANTED, torch.randn(2, 1, 5) if first else None
    )


def test_a_token_has_the_same_position_as_in_the_encoder() -> None:
    table = GridTokenizer(GRID, DIM, 0, Position(kind="sincos")).pos_embed
    assert table is not None
    of_places = table[0, 1:]  # the first row is the class token's
    _, plain = lay_positions(GRID, first=False)
    torch.testing.assert_close(plain, torch.cat([of_places[SEEN], of_places[WANTED]], 1), rtol=0, atol=0)
    _, laid = lay_positions(GRID, first=True)
    torch.testing.assert_close(laid[:, :1], table[:, :1].expand(2, -1, -1), rtol=0, atol=0)
    torch.testing.assert_close(laid[:, 1:], plain, rtol=0, atol=0)


def test_positions_on_a_grid_are_sines_and_cosines_of_the_column_then_of_the_row() -> None:
    frequencies = torch.tensor([1.0, 1 / 100])  # 10000 ** -(i / 2) for a quarter of 8 channels
    row, column = torch.arange(6) // SIDES[1], torch.arange(6) % SIDES[1]
    angles = [place[:, None] * frequencies for place in (column, row)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)  # [N, d]
    _, laid = lay_positions(GRID, first=False)
    torch.testing.assert_close(laid, torch.cat([table[SEEN], table[WANTED]], 1))


def test_learned_positions_of_a_sequence_are_read_at_the_tokens_own_places() -> None:
    decoder, laid = lay_positions(StreamSpec(kind="sequence", shape=(6,), num_tokens=6), first=True)
    table = decoder.pos_embed[0]
    at = torch.cat([torch.zeros(2, 1, dtype=torch.long), SEEN + 1, WANTED + 1], 1)
    torch.testing.assert_close(laid, table[at], rtol=0, atol=0)
