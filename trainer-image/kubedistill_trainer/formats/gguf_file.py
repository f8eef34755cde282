"""A model as one GGUF file, for llama.cpp and what is built on it, and the same file read back.

It is written one tensor at a time, so that the largest tensor decides what memory it takes, not the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from kubedistill_api.output import GgufType
from kubedistill_trainer.formats import gguf_architectures, gguf_vocabulary
from kubedistill_trainer.formats.gguf_architectures import ARCHITECTURES
from kubedistill_trainer.formats.parity import EXACT, ROUNDED, NotTheModel, Parity, check, compare
from kubedistill_trainer.formats.texts import HARD_TEXTS
from kubedistill_trainer.models import load_model, load_tokenizer

FREQUENCIES = "rope_freqs.weight"
_FILE_TYPES = {
    GgufType.BF16: LlamaFileType.MOSTLY_BF16,
    GgufType.F16: LlamaFileType.MOSTLY_F16,
    GgufType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}


def objection(config: Any, tokenizer: Any) -> str:
    """Why a model cannot be written as GGUF; empty if it can. No weights are read."""
    return gguf_architectures.objection(config) or gguf_vocabulary.objection(tokenizer)


def write(model: Path, target: Path, name: str, kind: GgufType) -> None:
    """Write the model of a folder to a file. The same folder gives the same bytes.

    Raises:
        NotTheModel: the folder holds a weight that has no name in GGUF, or a value that its type cannot hold.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    weights = {key: file for file in sorted(model.glob("*.safetensors")) for key in _keys(file)}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    names = _names(config, weights)
    factors = gguf_architectures.frequency_factors(config)
    with closing(begin(target, name, config, load_tokenizer(model))) as writer:
        writer.add_file_type(_FILE_TYPES[kind])
        if factors is not None:
            writer.add_tensor_info(FREQUENCIES, factors.shape, factors.dtype, factors.nbytes)
        for key, file in weights.items():
            shape = _shape(file, key)
            stored = stored_type(kind, shape)
            writer.add_tensor_info(names[key], shape, np.dtype(np.float32), _bytes(shape, stored), raw_dtype=stored)
        writer.write_header_to_file(target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for key, file in weights.items():
            writer.write_tensor_data(_stored(key, arranged(key, _read(file, key).float().numpy(), config), kind))


def rehearse(target: Path, config: Any, tokenizer: Any) -> None:
    """Write a file without weights and read its tokenizer back. Raises NotTheModel if it is another."""
    with closing(begin(target, "rehearsal", config, tokenizer)) as writer:
        writer.write_header_to_file(target)
        writer.write_kv_data_to_file()
    verify_vocabulary(target, tokenizer)


def begin(target: Path, name: str, config: Any, tokenizer: Any) -> GGUFWriter:
    """A writer that knows everything but the weights."""
    writer = GGUFWriter(target, gguf_architectures.ARCHITECTURES[config.model_type].arch.name.lower())
    writer.add_type("model")
    writer.add_name(name)
    gguf_architectures.describe(writer, config)
    gguf_vocabulary.describe(writer, tokenizer, config.vocab_size)
    return writer


def stored_type(kind: GgufType, shape: Sequence[int]) -> GGMLQuantizationType:
    """llama.cpp adds and multiplies vectors in 32 bits. A row that is no whole number of blocks stays in 16."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind]
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _stored(key: str, rows: NDArray[np.float32], kind: GgufType) -> NDArray[Any]:
    stored = stored_type(kind, rows.shape)
    if stored is GGMLQuantizationType.F16 and np.abs(rows).max() > float(np.finfo(np.float16).max):
        raise NotTheModel(f"{key} has values that F16 cannot hold; BF16 can")
    data: NDArray[Any] = quantize(rows, stored)
    return data


def arranged(key: str, rows: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """A weight in the order of rows that llama.cpp expects."""
    found = re.search(r"\.(q|k)_proj\.", key)
    if found is None or not ARCHITECTURES[config.model_type].pairs_neighbours:
        return rows
    heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
    return gguf_architectures.in_pairs(rows, heads)


def verify(model: Path, file: Path, kind: GgufType, texts: Sequence[Sequence[int]]) -> Parity:
    """Load a file as a user of Transformers would, and hold it against the model that it was written from.

    1. The tokenizer gives the same ids, under llama.cpp's rule. 2. Every weight is the model's, as closely as its type
    allows. 3. The logits of `texts` (token ids) are. Takes the memory of the model in bfloat16 three times, one of them
    pages of files.

    Raises:
        NotTheModel: something differs.
    """
    verify_vocabulary(file, load_tokenizer(model))
    with torch.no_grad():
        ours = list(_logits(load_model(model, torch.bfloat16), texts))
        loaded = _load(file)
        verify_weights(model, loaded, kind)
        parity = compare(ours, _logits(loaded, texts))
    check(parity, ROUNDED if kind is GgufType.Q8_0 else EXACT)
    return parity


def verify_vocabulary(file: Path, tokenizer: Any, more: Sequence[str] = ()) -> None:
    """The tokenizer of a file, read by Transformers, must cut texts as the model's own does.

    Transformers does not know all of llama.cpp's rules, so the file's is given to it.

    Raises:
        NotTheModel: it does not.
    """
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    rule = str(GGUFReader(file).get_field("tokenizer.ggml.pre").contents())
    backend = read.backend_tokenizer
    backend.pre_tokenizer = gguf_vocabulary.splitter_of(rule)
    backend.model.ignore_merges = gguf_vocabulary.RULES[rule].whole_words_first
    specials = [f"a{token}b" for token in tokenizer.get_added_vocab()]
    for text in (*HARD_TEXTS, *specials, *more):
        ours, theirs = (one.encode(text, add_special_tokens=False) for one in (tokenizer, read))
        if ours != theirs:
            raise NotTheModel(f"its tokenizer makes {theirs[:12]} of {text[:60]!r}, the model's {ours[:12]}")
    for what in ("chat_template", "eos_token_id", "bos_token_id"):
        if getattr(tokenizer, what) != getattr(read, what):
            raise NotTheModel(f"its {what} is {getattr(read, what)!r}, the model's {getattr(tokenizer, what)!r}")


def verify_weights(model: Path, loaded: Any, kind: GgufType) -> None:
    """Every weight of a loaded file against the model's, by what its type can keep.

    Raises:
        NotTheModel: one is missing or further off.
    """
    there = loaded.state_dict()
    for file in sorted(model.glob("*.safetensors")):
        for key in _keys(file):
            ours = _read(file, key).bfloat16().float()
            theirs = there[key].float() if key in there else None
            if theirs is None or theirs.shape != ours.shape:
                raise NotTheModel(f"{key} is missing or has another shape")
            if float((ours - theirs).abs().max()) > _roundoff(stored_type(kind, ours.shape), ours):
                raise NotTheModel(f"{key} is not the model's")


def _roundoff(stored: GGMLQuantizationType, weight: Tensor) -> float:
    """The largest difference that rounding to a type makes: half a step of 2^-10 of the value or 2^-24 for F16; half of
    the 127th part of the largest of a block for Q8_0, and bfloat16's own rounding on top when it is loaded."""
    largest = float(weight.abs().max())
    return {
        GGMLQuantizationType.F16: max(largest * 2**-11, 2**-25),
        GGMLQuantizationType.Q8_0: largest * (0.51 / 127 + 2**-8),
    }.get(stored, 0.0)


def _load(file: Path) -> Any:
    """The model of a file, in bfloat16, as llama.cpp would compute it."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    config = AutoConfig.from_pretrained(**where)
    reader = GGUFReader(file)
    field = reader.get_field(f"{config.model_type}.attention.key_length")
    config.head_dim = int(field.contents())  # Transformers reads it for some families only
    plain = GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        **where, config=config, dtype=torch.bfloat16, quantization_config=plain
    ).eval()
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:  # and these not at all
            frequencies = gguf_architectures.plain_frequencies(config) / tensor.data
            rotary = loaded.model.rotary_emb
            rotary.inv_freq = torch.from_numpy(frequencies).to(rotary.inv_freq)
    return loaded


def _logits(model: Any, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    for ids in texts:
        yield model(torch.tensor([ids]), use_cache=False).logits[0]


def _names(config: Any, keys: Sequence[str] | dict[str, Path]) -> dict[str, str]:
    table = get_tensor_name_map(ARCHITECTURES[config.model_type].arch, config.num_hidden_layers)
    names = {key: table.get_name(key, try_suffixes=(".weight", ".bias")) for key in keys}
    nameless = [key for key, name in names.items() if name is None]
    if nameless:
        raise NotTheModel(f"these weights have no name in GGUF: {nameless[:3]}")
    return {key: str(name) for key, name in names.items()}


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        weight: Tensor = opened.get_tensor(key)
        return weight


def _shape(file: Path, key: str) -> tuple[int, ...]:
    with safe_open(file, framework="pt") as opened:
        return tuple(opened.get_slice(key).get_shape())


def _bytes(shape: Sequence[int], stored: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[stored]
    return math.prod(shape) // int(block) * int(size)
