"""The cost model: floating-point operations of each way to ask N queries after one prefix.

Multiplications and additions count as two. T prefix tokens, S suffix tokens a query, N queries; P weights that every token
is multiplied with (embeddings, norms and the output table excepted), L layers of H heads of width hd, hidden width d,
vocabulary V. One token that attends to c others costs 2P + a(c) with a(c) = 4 c H hd L; reading one row of logits 2 V d.
The formulae assume that all operations run at the same rate, so a method whose rate falls is caught by its measured ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Costs:
    """The sizes that decide what a token costs; see the module's first lines for the letters."""

    parameters: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Costs:
        """The sizes of a Llama-like model (gated MLP, grouped queries), from its configuration."""
        hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
        width = getattr(config, "head_dim", None) or hidden // heads
        attention = hidden * width * (2 * heads + 2 * config.num_key_value_heads)
        return cls(
            layers * (attention + 3 * hidden * config.intermediate_size),
            layers,
            heads,
            width,
            hidden,
            config.vocab_size,
        )

    def attention(self, seen: float) -> float:
        """a(c): one token's attention to `seen` tokens, in all layers."""
        return 4 * seen * self.heads * self.head_width * self.layers

    def tokens(self, count: float, before: float = 0.0) -> float:
        """`count` tokens of one sequence that stand after `before` others, each attending to all that came before it."""
        return count * (2 * self.parameters + self.attention(before + count / 2))

    @property
    def read(self) -> float:
        """One row of logits."""
        return 2 * self.vocabulary * self.hidden

    def naive(self, prefix: int, suffix: int) -> float:
        """A full forward pass of one prompt."""
        return self.tokens(prefix + suffix) + self.read

    def shared(self, prefix: int, suffix: int) -> float:
        """One query after a prefix that is already there."""
        return self.tokens(suffix, prefix) + self.read

    def prefill(self, prefix: int) -> float:
        """The prefix, once."""
        return self.tokens(prefix)

    def once(self, prefix: int, suffix: int, queries: int) -> float:
        """All queries after one prefix, the prefix included: the least a causal model can do."""
        return self.prefill(prefix) + queries * self.shared(prefix, suffix)

    def ratio(self, prefix: int, suffix: int, queries: int) -> float:
        """How many times cheaper `once` is than a full forward pass of every prompt."""
        return queries * self.naive(prefix, suffix) / self.once(prefix, suffix, queries)

    def generated(self, prompt: int, new: int) -> float:
        """A prompt of `prompt` tokens and `new` tokens decoded after it, one by one."""
        return self.naive(prompt, 0) + sum(self.shared(prompt + i, 1) for i in range(new - 1))
