"""Adapters learn on a student in four bits, by the real bitsandbytes; what is published knows nothing of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from toys.architectures import ARCHITECTURES, build
from transformers import AutoModelForCausalLM

from kubedistill_api.run import TrainRun
from kubedistill_api.student import Adapter, AdapterType
from kubedistill_trainer import engine, four_bits
from kubedistill_trainer.core.estimates import FOUR_BITS
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.pruning import prune
from kubedistill_trainer.errors import BadConfiguration, Stopped
from kubedistill_trainer.stages import train
from kubedistill_trainer.students import with_adapter

ADAPTER = {"type": "QLoRA", "rank": 8, "alpha": 16, "dropout": 0.1}
ON_ALL = Adapter(type=AdapterType.QLORA, rank=4)
TRAINING = {"hyperparameters": {"learningRate": 2e-2}}
IDS = torch.arange(3, 23)[None]


def base_of(done: Any, teacher: Path) -> Any:
    """The student before training, in its own precision."""
    base = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    return prune(base, done.result.layers_kept)


@pytest.mark.slow
def test_adapters_learn_on_four_bits_and_are_merged_into_the_students_own_weights(
    trained: Callable[..., Any], teacher: Path
) -> None:
    done = trained(student={"adapter": ADAPTER}, training={"hyperparameters": {"epochs": 8, "learningRate": 2e-2}})
    assert sum(done.losses[-3:]) < 0.8 * sum(done.losses[:3])
    adapter = done.folder / "adapter"
    merged = PeftModel.from_pretrained(base_of(done, teacher), adapter).merge_and_unload()
    published = done.model()
    before = base_of(done, teacher).state_dict()
    for name, weight in merged.state_dict().items():
        assert torch.equal(published.state_dict()[name], weight.bfloat16().float()), name
        assert torch.equal(weight, before[name]) == ("_proj" not in name), name
    config = json.loads((done.folder / "model" / "config.json").read_bytes())
    assert "quantization_config" not in config
    assert "quantization_config" not in json.loads((adapter / "adapter_config.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("kind", AdapterType)
def test_a_checkpoint_holds_the_adapters_alone(kind: AdapterType, trained: Callable[..., Any]) -> None:
    done = trained(student={"adapter": {**ADAPTER, "type": kind}}, training={"hyperparameters": {"maxSteps": 1}})
    weights = engine.weights(max((done.folder / "checkpoints").glob("step-*")))
    assert weights
    assert {name.rsplit(".", 3)[1] for name in weights} == {"lora_A", "lora_B"}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="float32"),
        pytest.param({"precision": "BF16"}, id="autocast"),
        pytest.param({"precision": "BF16", "deepspeed": {"zeroStage": 2}, "gradientCheckpointing": True}, id="ZeRO-2"),
    ],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # DeepSpeed's, when it first meets ZeRO
def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(
    training: dict[str, Any], trained: Callable[..., Any], a_run: Callable[..., TrainRun], a_context: Any
) -> None:
    changes = {"student": {"adapter": ADAPTER}, "training": {**TRAINING, **training}}
    whole = trained("whole", **changes)
    context = a_context("stopped")
    run = a_run(workspace=context.workspace.root, **changes)
    for _ in range(2):
        context.stopping.set()  # as SIGTERM does: seen after the next step
        with pytest.raises(Stopped):
            train.run(run, context)
    context.stopping.clear()
    train.run(run, context)
    folder = context.workspace.local_path(run.folder)
    for file in ("losses.jsonl", "model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    assert sum(whole.losses[-2:]) < sum(whole.losses[:2])


@pytest.fixture
def held(tmp_path: Path) -> Callable[..., Any]:
    """A model of an architecture in four bits."""

    def load(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
        build(architecture, 72).save_pretrained(tmp_path / architecture)
        return four_bits.load(tmp_path / architecture, dtype, "cpu")

    return load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_layers_that_adapters_stand_on_are_in_four_bits(
    architecture: str, dtype: torch.dtype, held: Any
) -> None:
    model = held(architecture, dtype)
    others = [weight for weight in model.parameters() if weight.dtype is not torch.uint8]
    assert {weight.dtype for weight in others} == {dtype}
    assert len(four_bits.layers(model)) == len(list(model.parameters())) - len(others)
    assert Head.of(model, 70).weight_VH.dtype is dtype
    tied = model.config.get_text_config().tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    adapted = with_adapter(model, ON_ALL, seed=0)
    under = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    assert [id(module.base_layer) for module in under] == [id(layer) for layer in four_bits.layers(model)]
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}


def test_four_bits_take_as_many_bytes_as_is_estimated(teacher: Path) -> None:
    held = four_bits.layers(four_bits.load(teacher, torch.bfloat16, "cpu"))
    found = sum(layer.weight.nbytes + scales_of(layer) for layer in held)
    assert found / sum(layer.in_features * layer.out_features for layer in held) == pytest.approx(FOUR_BITS, rel=1e-3)


def scales_of(layer: Any) -> int:
    """Bytes of the scales, and of the scales' scales; not of the two tables that are the same in every layer."""
    state = layer.weight.quant_state
    return int(state.absmax.nbytes + state.state2.absmax.nbytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_look_without_gradients_leaves_those_of_the_next_step_as_they_were(
    dtype: torch.dtype, make_toy: Any, tmp_path: Path
) -> None:
    """Widths of 128, which bitsandbytes packs for a CPU with AVX512-BF16 as soon as it need not learn."""
    path = make_toy.make_toy(tmp_path / "toy", make_toy.Toy(vocabulary=512))
    model = with_adapter(four_bits.load(path, dtype, "cpu"), ON_ALL, seed=0)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(IDS).logits.float().logsumexp(-1).sum().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    before = gradients()
    with torch.no_grad():
        model.eval()(IDS)
    after = gradients()
    assert len(before) == len(after) > 0
    assert all(map(torch.equal, before, after))
    assert all(
        float(gradient.abs().sum()) > 0 for gradient in before[1::2]
    )  # of the second factors: the first begin at 0


@pytest.mark.parametrize(
    "check",
    [four_bits.check_device, pytest.param(four_bits.check_device_apart, marks=pytest.mark.slow)],
    ids=["here", "in a process of its own"],
)
def test_a_device_without_bitsandbytes_is_refused_with_what_to_write(check: Callable[[str], None]) -> None:
    with pytest.raises(
        BadConfiguration, match=r"on the device mps: .+\. Write student\.adapter\.type: LoRA"
    ) as refused:
        check("mps")
    assert refused.value.reason == "FourBitsUnsupported"


def test_an_image_without_bitsandbytes_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type] # as Python marks what it lacks
    with pytest.raises(BadConfiguration, match=r"on the device cpu: .*bitsandbytes.*\. Write student\.adapter"):
        four_bits.check_device("cpu")


def test_a_training_without_bitsandbytes_is_refused_before_anything_is_fetched(
    a_run: Callable[..., TrainRun], a_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type]
    context = a_context()
    run = a_run(workspace=context.workspace.root, student={"adapter": ADAPTER}, answers=["nowhere"], prepared="nowhere")
    with pytest.raises(BadConfiguration, match=r"on the device cpu: .*Write student\.adapter\.type: LoRA"):
        train.run(run, context)
