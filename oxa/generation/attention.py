"""The sampler's cache of keys and values, and attention over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oxa.errors import DataError

ROOM_AHEAD = 64  # tokens by which the cache of keys and values grows


def empty_cache(model: Any) -> Any:
    """transformers' DynamicCache, its plain layers with room ahead.

    Its own layers copy all keys and values into new memory at every step: 47% of the time on the small world's model.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        keys: Tensor
        values: Tensor
        stores: tuple[
            Tensor, ...
        ] = ()  # [B, K, room, D] each; keys and values are views of their first columns

        def update(
            self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            added = (key_states, value_states)
            old = self.get_seq_length()
            new = old + key_states.shape[-2]
            if not self.stores or new > self.stores[0].shape[-2]:
                self.stores = tuple(s.new_empty(*s.shape[:2], new + ROOM_AHEAD, s.shape[-1]) for s in added)
                if old:
                    for store, part in zip(self.stores, (self.keys, self.values), strict=True):
                        store[:, :, :old] = part
            for store, part in zip(self.stores, added, strict=True):
                store[:, :, old:new] = part
            self.keys, self.values = (store[:, :, :new] for store in self.stores)
            return self.keys, self.values

        def batch_select_indices(self, indices: Tensor) -> None:
            if not self.stores:
                return
            length = self.get_seq_length()
            self.stores = tuple(store.index_select(0, indices) for store in self.stores)
            self.keys, self.values = (store[:, :, :length] for store in self.stores)

    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        if not hasattr(layer, "batch_select_indices"):  # a state in place of keys and values, as Mamba's
            raise DataError(
                f"{model.config.model_type}: the engine torch cannot draw from models with {type(layer).__name__}s, "
                "whose rows cannot be taken out of a batch; set generate.engine: vllm and rlvr.engine: vllm_colocate"
            )
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def sees_all(model: Any, cache: Any) -> bool:
    """Whether every layer sees all columns that are not padding, so that one mask, made once, serves them all."""
    from transformers.cache_utils import DynamicLayer

    plain = all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in cache.layers)
    return plain and model.config._attn_implementation == "oxa_grouped"


def share_keys_among_query_heads(model: Any) -> None:
    """Makes a model's SDPA attention take the G queries of a decoding step against their K keys as they lie.

    transformers copies keys and values G times wherever there is a mask; [B, K·G, 1, D] seen as [B, K, G, D] gives
    the same numbers without the copy: 1.3 to 1.6 times the tokens/s with padded prompts on the small world's model.
    On a CPU two batched products take the place of PyTorch's fused kernel, which gains nothing from one query a head.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation != "sdpa":
        return
    sdpa = AttentionInterface()["sdpa"]

    def grouped(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        batch, heads, queries, size = query.shape
        if queries > 1 or settings.get("position_bias") is not None:
            return sdpa(module, query, key, value, attention_mask, **settings)
        if {query.dtype, key.dtype, value.dtype} == {torch.float32} and query.device.type == "cpu":
            shared = query.reshape(batch, key.shape[1], -1, size) * (settings.get("scaling") or size**-0.5)
            scores = shared @ key.transpose(2, 3)  # [B, K, G, T]
            if attention_mask is not None:
                scores.masked_fill_(~attention_mask, -torch.inf)
            out = scores.softmax(-1) @ value
            return out.reshape(batch, 1, heads, value.shape[-1]), None
        if heads == key.shape[1]:
            return sdpa(module, query, key, value, attention_mask, **settings)
        out = torch.nn.functional.scaled_dot_product_attention(
            query.reshape(batch, key.shape[1], -1, size),
            key,
            value,
            attn_mask=attention_mask,
            scale=settings.get("scaling"),
        )
        return out.reshape(batch, 1, heads, value.shape[-1]), None

    AttentionInterface.register("oxa_grouped", grouped)
    AttentionMaskInterface.register("oxa_grouped", AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation("oxa_grouped")
