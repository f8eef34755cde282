"""A GGUF file is the model that it was written from, and what is not the model is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from toys.families import LONG, SHAPE
from transformers import AutoConfig, LlamaConfig, MistralConfig, Qwen2Config

from kubedistill_api.output import GgufType
from kubedistill_trainer.formats import gguf_architectures, gguf_file
from kubedistill_trainer.formats.parity import NotTheModel

MakeModel = Callable[[str], Path]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3"])
def test_every_family_is_read_back_bit_for_bit(
    family: str, a_model: MakeModel, texts: list[list[int]], tmp_path: Path
) -> None:
    model, file = a_model(family), tmp_path / "model.gguf"
    assert gguf_file.objection(AutoConfig.from_pretrained(model), gguf_file.load_tokenizer(model)) == ""
    gguf_file.write(model, file, "toy", GgufType.BF16)
    parity = gguf_file.verify(model, file, GgufType.BF16, texts)
    assert (parity.positions, parity.same_top, parity.largest) == (90, 90, 0.0)


@pytest.mark.parametrize("kind", [GgufType.F16, GgufType.Q8_0])
def test_other_types_are_read_back_within_their_rounding(
    kind: GgufType, a_model: MakeModel, texts: list[list[int]], tmp_path: Path
) -> None:
    gguf_file.write(a_model("llama"), tmp_path / "model.gguf", "toy", kind)
    parity = gguf_file.verify(a_model("llama"), tmp_path / "model.gguf", kind, texts)
    assert parity.divergence < 0.05
    types = {
        tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors if tensor.n_elements > 96
    }
    assert types == {kind.name}


def test_the_same_model_gives_the_same_bytes(a_model: MakeModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        gguf_file.write(a_model("llama"), tmp_path / name, "toy", GgufType.BF16)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.slow
def test_rows_in_transformers_order_are_noticed(
    a_model: MakeModel, texts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_architectures, "in_pairs", lambda rows, heads: rows)
    for kind in GgufType:
        gguf_file.write(a_model("llama"), tmp_path / kind, "toy", kind)
        with pytest.raises(NotTheModel, match=r"layers\.0\.self_attn\.k_proj\.weight is not the model's"):
            gguf_file.verify(a_model("llama"), tmp_path / kind, kind, texts)


def test_the_logits_alone_notice_rows_in_another_order(
    a_model: MakeModel, texts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_architectures, "in_pairs", lambda rows, heads: rows)
    monkeypatch.setattr(gguf_file, "verify_weights", lambda *_: None)
    gguf_file.write(a_model("llama"), tmp_path / "model.gguf", "toy", GgufType.BF16)
    with pytest.raises(NotTheModel, match="logits differ"):
        gguf_file.verify(a_model("llama"), tmp_path / "model.gguf", GgufType.BF16, texts)


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [("llama", "add_layer_norm_rms_eps", 0.1), ("qwen2", "add_rope_freq_base", 77.0), ("llama3", "factors", None)],
)
def test_a_wrong_setting_is_noticed_although_the_weights_are_right(
    family: str,
    setting: str,
    value: float | None,
    a_model: MakeModel,
    texts: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if setting == "factors":
        monkeypatch.setattr(gguf_architectures, "frequency_factors", lambda _: np.ones(16, np.float32))
    else:
        write = getattr(gguf_architectures.GGUFWriter, setting)
        monkeypatch.setattr(gguf_architectures.GGUFWriter, setting, lambda self, _: write(self, value))
    gguf_file.write(a_model(family), tmp_path / "model.gguf", "toy", GgufType.BF16)
    with pytest.raises(NotTheModel, match="logits differ"):
        gguf_file.verify(a_model(family), tmp_path / "model.gguf", GgufType.BF16, texts)


def test_a_flipped_bit_is_noticed(a_model: MakeModel, texts: list[list[int]], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    gguf_file.write(a_model("qwen2"), file, "toy", GgufType.BF16)
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(NotTheModel, match="is not the model's"):
        gguf_file.verify(a_model("qwen2"), file, GgufType.BF16, texts)


def test_a_weight_that_f16_cannot_hold_is_said_in_a_sentence(a_model: MakeModel, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    model = shutil.copytree(a_model("llama"), tmp_path / "large")
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 7] = 1e6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotTheModel, match="has values that F16 cannot hold; BF16 can"):
        gguf_file.write(model, tmp_path / "model.gguf", "toy", GgufType.F16)


def test_rows_in_pairs_bring_both_halves_of_a_head_together() -> None:
    rows = np.arange(8)[:, None]
    assert gguf_architectures.in_pairs(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_factors_of_stretched_positions_are_those_of_transformers() -> None:
    factors = gguf_architectures.frequency_factors(LlamaConfig(**SHAPE, head_dim=32, rope_parameters=LONG))
    assert factors is not None
    assert (factors[0], factors[-1]) == (pytest.approx(1.0), pytest.approx(8.0))
    assert gguf_architectures.frequency_factors(LlamaConfig(**SHAPE)) is None


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
REFUSED: dict[str, tuple[Any, str]] = {
    "family": (MistralConfig(**SHAPE), "a 'mistral' cannot be written, only llama, qwen2, qwen3"),
    "bias": (LlamaConfig(**SHAPE, attention_bias=True), "attention_bias: True, which llama.cpp's llama does not know"),
    "activation": (LlamaConfig(**SHAPE, hidden_act="gelu"), "hidden_act: gelu"),
    "window": (Qwen2Config(**SHAPE, use_sliding_window=True), "use_sliding_window: True"),
    "positions": (LlamaConfig(**SHAPE, rope_parameters=YARN), "its positions are of type 'yarn'"),
}


@pytest.mark.parametrize(("config", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_would_compute_otherwise_is_refused_before_there_are_weights(config: Any, why: str) -> None:
    assert why in gguf_architectures.objection(config)


def test_a_weight_without_a_name_is_said_in_a_sentence(a_model: MakeModel) -> None:
    config = AutoConfig.from_pretrained(a_model("llama"))
    with pytest.raises(NotTheModel, match=r"have no name in GGUF: \['model\.strange'\]"):
        gguf_file._names(config, ["model.norm.weight", "model.strange"])
