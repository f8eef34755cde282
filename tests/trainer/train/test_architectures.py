"""Students of every common architecture: computed as their authors meant it, trained, saved, and loaded by anybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from toys.architectures import ARCHITECTURES, LAYERS, WINDOW, build
from transformers import PreTrainedModel

from kubedistill_api.training import Objective, ObjectiveType
from kubedistill_trainer import engine, export
from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, MicroBatch, pack, pad
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import loss_of
from kubedistill_trainer.core.pruning import prune
from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.distiller import Distiller
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.models import load_model
from kubedistill_trainer.rehearsal import rehearse

VOCABULARY, ROWS = 70, 72
"""Tokens of the tokenizer; rows of the model, two of which have no token."""
LENGTHS = (11, 3, 17)
every = pytest.mark.parametrize("architecture", ARCHITECTURES)
layouts = pytest.mark.parametrize("layout", [pack, lambda rows: pad(rows, pad_id=0)], ids=["packed", "padded"])


def example(number: int, length: int) -> Example:
    draw = torch.Generator().manual_seed(number)
    ids_T = torch.randint(3, VOCABULARY, (length,), generator=draw)
    mask_T = torch.arange(length) >= max(1, length // 3)
    targets_N = ids_T[mask_T]
    logits_NV = 3 * torch.randn(len(targets_N), VOCABULARY, generator=draw)
    return Example(f"row-{number}", ids_T, mask_T, top_k(logits_NV, targets_N, 4))


EXAMPLES = [example(number, length) for number, length in enumerate(LENGTHS)]


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], PreTrainedModel]:
    """A model as the trainer loads it."""

    def load(architecture: str) -> PreTrainedModel:
        build(architecture, ROWS).save_pretrained(tmp_path / "model")
        return load_model(tmp_path / "model", torch.float32)

    return load


def own_logits(model: Any, rows: list[Example]) -> torch.Tensor:
    """Of the counted positions, [N, V], by the model's own forward pass, one row at a time."""
    model.set_attn_implementation("eager")
    return torch.cat(
        [model(example.input_ids_T[None]).logits[0, :-1, :VOCABULARY][example.target_mask_T[1:]] for example in rows]
    )


def packed_by_us(model: Any) -> Any:
    model.set_attn_implementation(attention.install())
    return model


@every
@layouts
def test_a_row_gets_the_models_own_logits_whatever_lies_beside_it(
    layout: Callable[[list[Example]], MicroBatch], architecture: str, loaded: Any
) -> None:
    model = loaded(architecture)
    batch, head = layout(EXAMPLES), Head.of(model, VOCABULARY)
    with torch.no_grad():
        hidden_BTH = packed_by_us(model).get_decoder()(**batch.model_inputs()).last_hidden_state
        logits_NV = batch.counted(hidden_BTH) @ head.weight_VH.T
        if head.softcap is not None:
            logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
        torch.testing.assert_close(logits_NV, own_logits(model, EXAMPLES), rtol=1e-5, atol=5e-5)


@every
def test_a_whole_row_without_a_mask_heeds_the_window(architecture: str, loaded: Any) -> None:
    model = loaded(architecture)
    ids_BT = EXAMPLES[2].input_ids_T[None]
    with torch.no_grad():
        ours = packed_by_us(model)(ids_BT).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(ours, model(ids_BT).logits, rtol=1e-5, atol=5e-5)


@every
def test_the_chunked_loss_is_that_of_the_models_own_logits_in_value_and_gradient(
    architecture: str, loaded: Any, plain_logprobs: Any
) -> None:
    model = loaded(architecture)
    loss = loss_of(Objective(type=ObjectiveType.FORWARD_KL, soft_weight=0.75), sampled_tail=False)
    batch = pack(EXAMPLES)
    plain = loss(plain_logprobs(own_logits(model, EXAMPLES), batch.supervision), batch.supervision).total
    wanted = dict(zip(names(model), torch.autograd.grad(plain, list(model.parameters())), strict=True))
    ours, _ = Distiller(packed_by_us(model), loss, VOCABULARY)(batch)
    found = dict(zip(names(model), torch.autograd.grad(ours, list(model.parameters())), strict=True))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    for name, gradient in wanted.items():
        off = float((found[name] - gradient).abs().max() / gradient.abs().max())
        assert off < 1e-5, f"{name} is off by {off:.1e} of its largest entry"


def names(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    """A model's folder. The toy tokenizer has fewer tokens than it has rows."""

    def save(architecture: str) -> Path:
        build(architecture, 520).save_pretrained(tmp_path / architecture)
        return tmp_path / architecture

    return save


TWO_STEPS = {"hyperparameters": {"maxSteps": 2, "learningRate": 1e-2}}
IDS = torch.arange(3, 3 + 4 * WINDOW)[None]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    return model(IDS).logits  # type: ignore[no-any-return]


@torch.no_grad()
def rounded(model: Any) -> Any:
    """With the weights that a file in bfloat16 holds."""
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())
    return model


@pytest.mark.slow
@every
def test_a_student_is_trained_saved_and_loaded_by_anybody(architecture: str, trained: Any, source: Any) -> None:
    start = source(architecture)
    done = trained(student={"prunedFrom": None, "model": {"uri": start.as_uri()}}, training=TWO_STEPS)
    assert done.result.steps == 2
    checkpoint = max((done.folder / "checkpoints").glob("step-*"))
    rebuilt = load_model(start, torch.float32)
    before = logits(rebuilt)
    export.fill(rebuilt, engine.weights(checkpoint))
    assert not torch.allclose(before, logits(rebuilt), atol=1e-2)
    assert torch.equal(logits(done.model()), logits(rounded(rebuilt)))


@pytest.mark.slow
@every
def test_a_pruned_student_with_adapters_on_all_its_layers_is_saved_merged(
    architecture: str, trained: Any, source: Any
) -> None:
    start = source(architecture)
    done = trained(
        teachers=[{"name": "toy", "model": {"uri": start.as_uri()}, "batch": {"gpus": 0}}],
        student={"prunedFrom": {"teacher": "toy", "layers": LAYERS - 1}, "adapter": {"rank": 4, "alpha": 8}},
        training=TWO_STEPS,
    )
    base = prune(load_model(start, torch.float32), done.result.layers_kept)
    before = logits(base)
    linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    merged = PeftModel.from_pretrained(base, done.folder / "adapter")
    adapted = {name.split(".lora_A")[0] for name, _ in merged.named_parameters() if ".lora_A" in name}
    assert adapted == {f"base_model.model.{name}" for name in linear if name != "lm_head"}
    merged = merged.merge_and_unload()
    assert not torch.equal(before, logits(merged))
    assert torch.equal(logits(done.model()), logits(rounded(merged)))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_sound_student_passes_its_rehearsal(dtype: torch.dtype, architecture: str, loaded: Any) -> None:
    rehearse(loaded(architecture).to(dtype), VOCABULARY, packing=True)


def test_a_student_whose_rows_disturb_each_other_is_refused_with_what_to_write(loaded: Any) -> None:
    model = loaded("llama")
    deaf = model.get_decoder().forward
    model.get_decoder().forward = lambda cu_seq_lens_q=None, **inputs: deaf(**inputs)
    with pytest.raises(BadConfiguration, match=r"'llama'.* nats from its own\. Write .*packing: false"):
        rehearse(model, VOCABULARY, packing=True)
    rehearse(model, VOCABULARY, packing=False)


def test_a_student_that_scales_its_logits_in_a_way_of_its_own_is_refused(loaded: Any) -> None:
    model = loaded("llama")
    model.lm_head.register_forward_hook(lambda _, __, logits: 0.5 * logits)
    with pytest.raises(BadConfiguration, match=r"nats from its own\. Use a student of another architecture"):
        rehearse(model, VOCABULARY, packing=False)
