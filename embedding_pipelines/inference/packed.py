"""Runs BERT and its kin on texts without padding: all tokens of a batch stand in one row.

Attention then goes by where each text begins, with the kernels that torch has for it on CUDA.
"""

from typing import TYPE_CHECKING, Any

from embedding_pipelines.extras import need

if TYPE_CHECKING:
    from torch import Tensor

NAME = "embedding_pipelines_packed"  # among the attentions of transformers
# Whether positions begin behind the id of padding. Other kinds of models take other positions, or
# more than positions.
OFFSET_POSITIONS = {
    "bert": False,
    "distilbert": False,
    "roberta": True,
    "xlm-roberta": True,
    "camembert": True,
}
POOLING = ("mean", "cls", "lasttoken")


def can_pack(model: Any) -> bool:
    """Whether a sentence-transformers model is a transformer of a kind that is known here and a
    pooling, with other modules behind them or not."""
    names = [type(module).__name__ for module in model]
    if names[:2] != ["Transformer", "Pooling"]:
        return False
    config = getattr(model[0].model, "config", None)
    return (
        getattr(config, "model_type", None) in OFFSET_POSITIONS
        and not getattr(config, "is_decoder", False)
        and model[1].pooling_mode in POOLING
    )


def use_packed_attention(model: Any) -> None:
    """Have the model's transformer attend within each text of one row."""
    registry = need("transformers", "local").AttentionInterface
    registry.register(NAME, _attention)
    model[0].model.set_attn_implementation(NAME)


def forward(
    model: Any, ids: "Tensor", positions: "Tensor", starts: "Tensor", longest: int, unpooled: int
) -> "Tensor":
    """float32[n, d] of the token ids [total] of n texts, their positions [total], and where each
    text begins and the last one ends, int32[n + 1]."""
    transformer, pooling, *others = model
    config = transformer.model.config
    if OFFSET_POSITIONS[config.model_type]:
        positions = positions + (config.pad_token_id + 1)
    tokens = transformer.model(
        input_ids=ids[None], position_ids=positions[None], starts=starts, longest=longest
    ).last_hidden_state[0]
    features = {"sentence_embedding": _pool(tokens, pooling.pooling_mode, starts, unpooled)}
    for module in others:
        features = module(features)
    vectors: Tensor = features["sentence_embedding"]
    return vectors


def _pool(tokens: "Tensor", mode: str, starts: "Tensor", unpooled: int) -> "Tensor":
    """float32[n, d] of [total, d], without the first `unpooled` tokens of each text."""
    torch = need("torch", "local")
    if mode == "lasttoken":
        return tokens[starts[1:] - 1].float()
    if mode == "cls":  # the first that pooling counts
        return tokens[starts[:-1] + unpooled].float()
    lengths = (starts[1:] - starts[:-1]).long()
    # `unsafe`: without a look at the lengths, which would wait for the device.
    total: Tensor = torch.segment_reduce(
        tokens.float(), "sum", lengths=lengths, axis=0, unsafe=True
    )
    if unpooled:
        left_out = starts[:-1, None] + torch.arange(unpooled, device=starts.device)
        total = total - tokens[left_out].float().sum(1)
    return total / (lengths - unpooled)[:, None]


def _attention(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    mask: None,
    *,
    scaling: float,
    starts: "Tensor",
    longest: int,
    **others: object,
) -> tuple["Tensor", None]:
    """As transformers asks for it: [1, heads, total, size] in, [1, total, heads, size] out."""
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    return attend(queries, keys, values, starts, longest, scaling)[None], None


def attend(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    starts: "Tensor",
    longest: int,
    scale: float,
) -> "Tensor":
    """Attention [total, heads, size] within each text."""
    varlen = need("torch.nn.attention.varlen", "local").varlen_attn
    result: Tensor = varlen(query, key, value, starts, starts, longest, longest, scale=scale)
    return result
