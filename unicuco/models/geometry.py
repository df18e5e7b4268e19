"""What a base model is made of, in numbers alone: enough to size any strategy without loading the model."""

from __future__ import annotations

from functools import cached_property

from pydantic import BaseModel, ConfigDict


class BlockGeometry(BaseModel):
    """One block (decoder layer). Parameters of norms belong to the sublayer that they feed or follow.

    A *KV group* is one key/value head together with the query heads that read it; *neurons* are the MLP's hidden units.
    """

    model_config = ConfigDict(frozen=True)

    groups: int
    heads_per_group: int
    head_dim: int
    neurons: int
    attention_fixed: int
    """Parameters that go only when the whole attention goes (norms, output bias)."""
    params_per_group: int
    macs_per_group: int
    """Multiply-adds per token of one group's share of the q, k, v and o projections."""
    mlp_fixed: int
    params_per_neuron: int
    macs_per_neuron: int

    def attention_params(self, groups: int) -> int:
        """Parameters of the attention sublayer with ``groups`` KV groups left; 0 groups is a dropped sublayer."""
        return self.attention_fixed + groups * self.params_per_group if groups else 0

    def mlp_params(self, neurons: int) -> int:
        """Parameters of the MLP with ``neurons`` hidden units left; 0 is a dropped sublayer."""
        return self.mlp_fixed + neurons * self.params_per_neuron if neurons else 0

    @property
    def params(self) -> int:
        return self.attention_params(self.groups) + self.mlp_params(self.neurons)


class Geometry(BaseModel):
    """The whole base model: its blocks, and everything that no strategy touches."""

    model_config = ConfigDict(frozen=True)

    family: str
    """``model_type`` of the Hugging Face config."""
    hidden_size: int
    vocab_size: int
    blocks: tuple[BlockGeometry, ...]
    fixed_params: int
    """Embeddings, head and final norm; tied weights counted once."""
    fixed_macs: int
    """Multiply-adds per token outside the blocks: the head."""

    @cached_property
    def block_params(self) -> int:
        """Parameters of all dense blocks: the denominator of ``kept``."""
        return sum(block.params for block in self.blocks)

    @property
    def params(self) -> int:
        """All dense parameters: the denominator of ``ratio``."""
        return self.fixed_params + self.block_params
