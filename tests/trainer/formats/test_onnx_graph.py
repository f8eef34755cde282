"""An ONNX graph is the model that it was written from, padded and with its cache; what is not the model is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from transformers import AutoConfig, Lfm2Config

from kubedistill_trainer.formats import onnx_graph
from kubedistill_trainer.formats.parity import NotTheModel
from kubedistill_trainer.store.manifests import entries_of

pytestmark = pytest.mark.slow  # an export takes torch some seconds, however small the model is

MakeModel = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(a_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The ONNX folder of a family's model."""
    made: dict[str, Path] = {}

    def export(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("onnx") / family
            onnx_graph.write(a_model(family), made[family])
        return made[family]

    return export


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
def test_it_answers_as_torch_does_padded_and_with_its_cache(
    family: str, a_model: MakeModel, exported: Callable[[str], Path], texts: list[list[int]]
) -> None:
    parity = onnx_graph.verify(a_model(family), exported(family), texts)
    assert (parity.positions, parity.same_top) == (180, 180)
    assert parity.largest < 1e-3


def test_its_names_are_those_of_optimum(exported: Callable[[str], Path]) -> None:
    graph = onnx.load(exported("llama") / "model.onnx", load_external_data=False).graph
    shapes = {
        one.name: [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
        for one in (*graph.input, *graph.output)
    }
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "total_sequence"]
    assert shapes["past_key_values.1.value"] == ["batch", 2, "past_sequence", 16]
    assert shapes["logits"] == ["batch", "sequence", 520]
    assert sorted(shapes["present.1.value"][2].split(" + ")) == ["past_sequence", "sequence"]
    assert len(shapes) == 3 + 1 + 2 * 2 * 2


def test_its_folder_is_complete_and_its_weights_are_beside_the_graph(exported: Callable[[str], Path]) -> None:
    files = entries_of(exported("llama"))
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(files)
    assert "model.safetensors" not in files
    assert files["model.onnx"].size < 100_000 < files["model.onnx_data"].size


def test_the_same_model_gives_the_same_bytes_and_none_of_this_machine(
    a_model: MakeModel, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    onnx_graph.write(a_model("llama"), tmp_path / "again")
    assert entries_of(tmp_path / "again") == entries_of(exported("llama"))
    graph = (tmp_path / "again" / "model.onnx").read_bytes()
    assert b"site-packages" not in graph
    assert str(Path(__file__).parents[3]).encode() not in graph


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.onnx_data").read_bytes())
    data[1003] ^= 0x40  # an exponent
    (folder / "model.onnx_data").write_bytes(data)


def cut(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-500])


def lose(folder: Path) -> None:
    (folder / "model.onnx_data").unlink()


@pytest.mark.parametrize(
    ("harm", "why"), [(flip, "logits differ|not finite"), (cut, "does not load"), (lose, "does not load")]
)
def test_a_broken_file_is_noticed(
    harm: Callable[[Path], None],
    why: str,
    a_model: MakeModel,
    exported: Callable[[str], Path],
    texts: list[list[int]],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(exported("qwen2"), tmp_path / "broken")
    harm(folder)
    with pytest.raises(NotTheModel, match=why):
        onnx_graph.verify(a_model("qwen2"), folder, texts)


def test_a_model_can_be_rehearsed_without_its_weights(a_model: MakeModel) -> None:
    config: Any = AutoConfig.from_pretrained(a_model("qwen2"))
    config.num_hidden_layers, config.layer_types = 40, ["full_attention"] * 40
    assert onnx_graph.objection(config) == ""
    assert config.num_hidden_layers == 40


def test_a_model_without_keys_and_values_is_refused_with_a_reason() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Lfm2Config(vocab_size=64, num_hidden_layers=2, layer_types=["conv", "full_attention"], **shape)
    assert "a 'lfm2': its cache is not one of keys and values" in onnx_graph.objection(config)
