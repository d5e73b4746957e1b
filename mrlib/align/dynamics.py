r"""Differences of neighbouring clips attend to the words and are mixed into the clips (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025 (arXiv
         2501.07305)
Here     `dynamic_tokens` is the tokenizer  [TD-DETR Eq. 2], [TD-DETR Eq. 3]; `Dynamics` lets its tokens attend to the
         words  [TD-DETR Eq. 4], [TD-DETR Eq. 5] and mixes the result into the clips  [TD-DETR Eq. 6]; it is the `mix`
         of `T2VLayer` or of a joint encoder
Ours     clips and tokens attend with separate projections, as in the released code; the paper shares keys and values.
         The learned start is drawn from the normal distribution, since the paper does not say. In a joint encoder, for
         which the paper gives no rule, tokens are mixed once into the clips that enter the first layer
Departs  xyangzhou/TD-DETR drops 0.1 of the inputs of both projections, whatever the dropout elsewhere
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrlib.align.words import Words
from mrlib.arguments import require
from mrlib.layers import Attention, Projection, Sizes


def dynamic_tokens(x: Tensor, start: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""The difference of every clip and its predecessor, `start` for the first.  [TD-DETR Eq. 2], [TD-DETR Eq. 3]

    $$\tilde V = \{st, \tilde v_1, \dots, \tilde v_L\}, \quad T_1 = \tilde v_1 - st, \quad
    T_t = \tilde v_t - \tilde v_{t-1}$$

    x        (B, T, d)  clips, followed by padding
    start    (d,)  stands before the first clip
    mask     bool (B, T)  tokens are 0 on padding; None: all clips are real
    returns  (B, T, d)
    """
    before = torch.cat([start.to(x.dtype).expand(len(x), 1, -1), x[:, :-1]], 1)  # (B, T, d)
    tokens = x - before
    return tokens if mask is None else tokens.masked_fill(~mask[..., None], 0)


class Dynamics(nn.Module):
    r"""Tokens attend to words and are mixed into the clips.  [TD-DETR Eq. 4], [TD-DETR Eq. 5], [TD-DETR Eq. 6]

    $$F = \mathrm{MHA}(\ell_2(\ell_1(T)), Y, Y), \quad X \leftarrow \beta X + (1 - \beta) F$$

    T are the dynamic tokens of the clips with their positions added, Y the words. $\ell(x) = \mathrm{ReLU}(W
    \mathrm{LN}(x) + b)$ with dropout after the norm; F itself has none. With a beta of 1 the clips stay as they are.
    """

    def __init__(self, width: int, heads: int, dropout: float, beta: float, start: nn.Embedding | None = None):
        """Dynamics of a width, with attention of this many heads.

        dropout  of the two projections of the tokens and of the attention weights
        beta     weight of the clips, from 0 to 1; the attended tokens have 1 - beta
        start    the start token of another layer, which both then share; None: a new one
        """
        super().__init__()
        require(type(beta) in (int, float) and 0 <= beta <= 1, "beta", beta, "None or a number from 0 to 1")
        self.beta = beta
        self.project, self.attend = Projection(width, width, 2, dropout), Attention(width, heads, dropout)
        for part in self.project:
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
        if start is None:
            start = self.start = nn.Embedding(1, width)
        # The shared start token is registered on the first layer only, so it appears once in the state dict. The tuple
        # hides it from registration; copying, moving and loading still reach the one module.
        self._shared_start = (start,)

    def forward(self, x: Tensor, positions: Tensor, words: Words) -> Tensor:
        """The `mix` of a layer; clips x and positions (B, T, d) -> (B, T, d)."""
        return self.flow(x, dynamic_tokens(x + positions, self._shared_start[0].weight[0]), words)

    def flow(self, x: Tensor, tokens: Tensor, words: Words) -> Tensor:
        """`forward` with given tokens instead of those of x; x, tokens (B, T, d) -> (B, T, d)."""
        queries = self.project(tokens).relu()  # (B, T, d)
        attended = self.attend(queries, words.keys, words.values, words.mask, words.visible)  # F (B, T, d)
        return self.beta * x + (1 - self.beta) * attended


def dynamics(layers: int, sizes: Sizes, beta: float | None) -> list[Dynamics] | list[None]:
    """One `Dynamics` per layer, with a shared start token; if beta is None, one None per layer."""
    if beta is None:
        return [None] * layers
    modules: list[Dynamics] = []
    for _ in range(layers):
        start = modules[0].start if modules else None
        modules.append(Dynamics(sizes.width, sizes.heads, sizes.dropout, beta, start))
    return modules
