"""Continuous batched decoding with a key-value cache, for models from transformers.

Rows of a batch are aligned at their ends: row r's n tokens lie in the last n columns of the cache. So every step writes
one column, a finished row is dropped and a new one joins at any step, and no row waits for another.

Shapes: B rows, W columns of the cache, P tokens of the longest prompt, V vocabulary (of the tokenizer; padded logits
are cut off, they hold real mass), H likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

HEADROOM = 128
"""Columns that a cache grows by: it is copied once in so many steps instead of at every one."""
HEAD = 64
"""Likeliest tokens that are looked at first when one is drawn; the whole vocabulary is sorted only for what is left."""
GROUPED = "kubedistill_grouped"


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values [B, heads, W, head size]: a window on buffers with room for more columns."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.hold(key_states[:, :, :0], value_states[:, :, :0], 0, more=new)
        if self.end + new > self.rooms[0].shape[-2]:
            self.hold(self.keys, self.values, self.keys.shape[-2], more=new)
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, self.end : self.end + new] = states
        self._look(self.end - self.keys.shape[-2], self.end + new)
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor, width: int, more: int = 0) -> None:
        """Start anew with these columns as the last of `width`, and room for `more` and some behind them."""
        columns = keys.shape[-2]
        self.rooms = tuple(
            states.new_zeros(*states.shape[:2], width + more + HEADROOM, states.shape[3]) for states in (keys, values)
        )
        for room, states in zip(self.rooms, (keys, values), strict=True):
            room[:, :, width - columns : width] = states
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._look(width - columns, width)

    def focus(self, width: int) -> None:
        """Look at the last `width` columns only: the rows that needed more are gone."""
        self._look(self.end - width, self.end)

    def place(self, other: RoomyLayer, rows: Sequence[int]) -> None:
        """Put another layer's rows in the place of some of these, aligned at their ends."""
        columns = other.keys.shape[-2]
        if columns > self.end:
            self.hold(self.keys, self.values, columns)
        index = torch.tensor(rows, device=self.device)
        for room, states in zip(self.rooms, (other.keys, other.values), strict=True):
            room[index, :, self.end - columns : self.end] = states
        self._look(min(self.end - columns, self.start), self.end)

    def _look(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.keys, self.values = (room[:, :, start:end] for room in self.rooms)


class Decoder:
    """Rows under way in one model. Rows are known by their place; the caller keeps the same order."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.lengths: list[int] = []
        """Cached tokens of each row."""
        self._cache: Any = None
        layers = getattr(DynamicCache(config=model.config), "layers", [])
        self.joinable = all(type(layer) is DynamicLayer for layer in layers)
        """Whether rows may join a running batch. Sliding windows and recurrent states cannot be joined: then a batch
        runs until its last row is done."""
        if self.joinable and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(GROUPED)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], places: Sequence[int] = ()) -> Tensor:
        """Read prompts into the given places of the batch, or behind its rows; the logits [B, V] of what follows each.

        `places` is empty or has one retired row for each prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids_BP = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BP[row, -len(prompt) :] = torch.tensor(prompt)
        positions_BP = torch.arange(ids_BP.shape[1]) - (ids_BP.shape[1] - torch.tensor(lengths))[:, None]
        cache = Cache(layer_class_to_replicate=RoomyLayer) if self.joinable else DynamicCache(config=self.model.config)
        logits_BV = self._forward(ids_BP, positions_BP.clamp(min=0), lengths, cache)
        if places:
            for layer, new in zip(self._cache.layers, cache.layers, strict=True):
                layer.place(new, places)
            for place, length in zip(places, lengths, strict=True):
                self.lengths[place] = length
        else:
            self._cache = cache if self._cache is None else _stacked(self._cache, cache)
            self.lengths = self.lengths + lengths
        return logits_BV

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to every row; the logits [B, V] of what follows."""
        if self.joinable:
            for layer in self._cache.layers:
                layer.focus(max(self.lengths))
        positions_B1 = torch.tensor(self.lengths)[:, None]
        self.lengths = [length + 1 for length in self.lengths]
        return self._forward(tokens_B[:, None].cpu(), positions_B1, self.lengths, self._cache)

    def retire(self, row: int) -> None:
        """Forget what a row holds; its place stays, and costs nearly nothing, until a new row takes it."""
        self.lengths[row] = 1

    def keep(self, rows: Sequence[int]) -> None:
        """Drop the places of all other rows."""
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self._cache = None
        elif self.joinable:
            index = torch.tensor(list(rows), device=self.model.device)
            for layer in self._cache.layers:
                layer.hold(layer.keys[index], layer.values[index], layer.keys.shape[-2])
        else:
            self._cache.batch_select_indices(torch.tensor(rows, device=self.model.device))

    def _forward(self, ids_BP: Tensor, positions_BP: Tensor, lengths: Sequence[int], cache: Any) -> Tensor:
        width = cache.get_seq_length() + ids_BP.shape[1]
        mask_BW = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
        device = self.model.device
        output = self.model(
            input_ids=ids_BP.to(device),
            attention_mask=mask_BW.to(device),
            position_ids=positions_BP.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return torch.as_tensor(output.logits)[:, -1, : self.vocabulary].float()


def draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token a row: the likeliest at temperature 0, else where the row's uniform number falls in the distribution.

    Tokens are laid out from the likeliest down, and cut where their sum reaches `top_p`. The head decides nearly
    always; a row whose number (or whose cut) lies beyond it is sorted as a whole.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    scaled_BV = logits_BV / temperature
    total_B = scaled_BV.logsumexp(-1)
    head_BH, ids_BH = scaled_BV.topk(min(HEAD, scaled_BV.shape[-1]), dim=-1)
    mass_BH = (head_BH - total_B[:, None]).double().exp().cumsum(-1)
    uniforms_B = uniforms_B.to(mass_BH)
    beyond_B = mass_BH[:, -1] < top_p if top_p < 1 else mass_BH[:, -1] <= uniforms_B
    chosen_B = ids_BH.gather(-1, _pick(mass_BH, uniforms_B, top_p)[:, None]).squeeze(-1)
    for row in beyond_B.nonzero().flatten().tolist():
        sorted_V, ids_V = scaled_BV[row].sort(descending=True)
        mass_V = (sorted_V - total_B[row]).double().exp().cumsum(-1)
        chosen_B[row] = ids_V[_pick(mass_V[None], uniforms_B[row : row + 1], top_p)[0]]
    return chosen_B


def _pick(mass_BH: Tensor, uniforms_B: Tensor, top_p: float) -> Tensor:
    """The place in each row at which the cumulated mass, cut at `top_p`, passes the uniform number."""
    if top_p < 1:
        cut_B1 = (mass_BH < top_p).sum(-1, keepdim=True).clamp(max=mass_BH.shape[-1] - 1)
        wanted_B1 = uniforms_B[:, None] * mass_BH.gather(-1, cut_B1)
    else:
        wanted_B1 = uniforms_B[:, None]
    return (mass_BH <= wanted_B1).sum(-1).clamp(max=mass_BH.shape[-1] - 1)


def _stacked(upper: Any, lower: Any) -> Any:
    """The rows of two caches in one, aligned at their ends."""
    width = max(upper.get_seq_length(), lower.get_seq_length())
    stacked = Cache(layer_class_to_replicate=RoomyLayer)
    for pair in zip(upper.layers, lower.layers, strict=True):
        layer = RoomyLayer()
        keys, values = (
            torch.cat([_widened(getattr(part, name), width) for part in pair]) for name in ("keys", "values")
        )
        layer.hold(keys, values, width)
        stacked.layers.append(layer)
    return stacked


def _widened(states: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _grouped_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any) -> Any:
    """Attention of one new token a row. Query heads that share a key head are laid side by side as if they were
    positions, so that keys and values need not be repeated for each (which copies the whole cache at every step).

    Anything else goes the usual way.
    """
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if length != 1 or groups == 1 or kw.get("position_bias") is not None or kw.get("dropout"):
        return sdpa_attention_forward(module, query, key, value, mask, **kw)
    output = torch.nn.functional.scaled_dot_product_attention(
        query.view(rows, key.shape[1], groups, size), key, value, attn_mask=mask, scale=kw.get("scaling")
    )
    return output.reshape(rows, 1, heads, size), None


AttentionInterface.register(GROUPED, _grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
