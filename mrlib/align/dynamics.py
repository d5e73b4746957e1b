r"""Changes from clip to clip gather words of their own and flow into the clips (TD-DETR).

Paper    "The Devil is in the Spurious Correlations: Boosting Moment Retrieval with Dynamic Learning", ICCV 2025 (arXiv
         2501.07305)
Here     `dynamic_tokens` is the tokenizer  [TD-DETR Eq. 2], [TD-DETR Eq. 3]; `Dynamics` lets its tokens attend to the
         words  [TD-DETR Eq. 4], [TD-DETR Eq. 5] and mixes what they gather into the clips  [TD-DETR Eq. 6]; it is
         handed to `T2VLayer`, or to a joint encoder, as `mix`
Ours     clips and their changes have keys and values of their own, as in the released code; the paper shares them. The
         learned start is drawn from the normal distribution, since the paper does not say. In a joint encoder, for
         which the paper gives no rule, the changes flow once into the clips that enter the first layer
Departs  xyangzhou/TD-DETR drops 0.1 of the inputs of both projections, whatever the dropout elsewhere
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrlib.align.words import Words
from mrlib.arguments import require
from mrlib.layers import Attention, Projection, Sizes


def dynamic_tokens(x: Tensor, start: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Difference of every clip from the one before it, of the first from a start.  [TD-DETR Eq. 2], [TD-DETR Eq. 3]

    $$\tilde V = \{st, \tilde v_1, \dots, \tilde v_L\}, \quad T_1 = \tilde v_1 - st, \quad
    T_t = \tilde v_t - \tilde v_{t-1}$$

    x        (B, T, d)  clips, padding behind them
    start    (d,)
    mask     bool (B, T)  tokens are 0 on padding; None: all clips are real
    returns  (B, T, d)
    """
    before = torch.cat([start.to(x.dtype).expand(len(x), 1, -1), x[:, :-1]], 1)  # (B, T, d)
    tokens = x - before
    return tokens if mask is None else tokens.masked_fill(~mask[..., None], 0)


class Dynamics(nn.Module):
    r"""The clips' changes gather words, which flow into the clips.  [TD-DETR Eq. 4], [TD-DETR Eq. 5], [TD-DETR Eq. 6]

    $$F = \mathrm{MHA}(\ell_2(\ell_1(T)), Y, Y), \quad X \leftarrow \beta X + (1 - \beta) F$$

    T are the tokens of the clips with their positions, Y the words, $\ell(x) = \mathrm{ReLU}(W \mathrm{LN}(x) + b)$. F
    has no dropout. With a beta of 1 the clips stay as they are.
    """

    def __init__(self, width: int, heads: int, dropout: float, beta: float, start: nn.Embedding | None = None):
        """Dynamics of a width.

        beta   the share of the clips, from 0 to 1
        start  the start token of another layer, which both then share; None: one of its own
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
        """x, positions (B, T, d) -> (B, T, d)."""
        return self.flow(x, dynamic_tokens(x + positions, self._shared_start[0].weight[0]), words)

    def flow(self, x: Tensor, tokens: Tensor, words: Words) -> Tensor:
        """The same with given tokens, (B, T, d) as x is."""
        changes = self.project(tokens).relu()  # (B, T, d)
        gathered = self.attend(changes, words.keys, words.values, words.mask, words.seen)  # (B, T, d)
        return self.beta * x + (1 - self.beta) * gathered


def dynamics(layers: int, sizes: Sizes, beta: float | None) -> list[Dynamics] | list[None]:
    """One `Dynamics` for each of some layers, all with one start token; None for each where beta is None."""
    if beta is None:
        return [None] * layers
    modules: list[Dynamics] = []
    for _ in range(layers):
        start = modules[0].start if modules else None
        modules.append(Dynamics(sizes.width, sizes.heads, sizes.dropout, beta, start))
    return modules
