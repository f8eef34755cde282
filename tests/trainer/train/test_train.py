"""Whole trainings in this process: a real toy teacher, a real engine, real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubedistill_api.run import TrainRun
from kubedistill_api.training import Objective
from kubedistill_trainer import engine, runtime
from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, pack
from kubedistill_trainer.core.losses import loss_of
from kubedistill_trainer.core.signals import Text, top_k
from kubedistill_trainer.distiller import Distiller
from kubedistill_trainer.errors import BadConfiguration, BadData, Stopped
from kubedistill_trainer.models import load_model
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import train
from kubedistill_trainer.store import manifests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # DeepSpeed's, when it first meets ZeRO
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),  # DeepSpeed's ZeRO-3
]


def an_example(length: int, *, scored: bool) -> Example:
    """A row of made-up tokens, all but three of them targets."""
    ids_T, mask_T = torch.arange(length) + 3, torch.arange(length) > 2
    logits_NV = 3 * torch.randn(int(mask_T.sum()), 64, generator=torch.Generator().manual_seed(length))
    return Example(str(length), ids_T, mask_T, top_k(logits_NV, ids_T[mask_T], 8) if scored else Text())


def test_a_pruned_student_learns_and_its_export_is_what_was_trained(trained: Callable[..., Any], teacher: Path) -> None:
    done = trained(training={"hyperparameters": {"epochs": 8}})
    assert done.result.steps == 24 == len(done.losses)
    assert sum(done.losses[-3:]) < 0.6 * sum(done.losses[:3])
    assert len(done.result.layers_kept) == 2
    model = done.model()
    assert model.config.num_hidden_layers == 2
    assert done.result.parameters == sum(weight.numel() for weight in model.parameters())
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "model.safetensors"):
        assert (done.folder / "model" / file).is_file(), file
    tokenizer = AutoTokenizer.from_pretrained(done.folder / "model")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    start = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    assert not torch.equal(model.get_input_embeddings().weight, start.get_input_embeddings().weight)


def test_the_weights_of_the_lowest_held_out_loss_are_exported(trained: Callable[..., Any]) -> None:
    done = trained(training={"hyperparameters": {"epochs": 4}, "checkpoints": {"everySteps": 2, "keepLast": 1}})
    assert set(done.validation_losses) == {2, 3, 4, 6, 8, 9, 10, 12}
    assert done.result.validation_loss == min(done.validation_losses.values())
    best = min(done.validation_losses, key=done.validation_losses.__getitem__)
    checkpoints = {int(path.name.removeprefix("step-")): path for path in (done.folder / "checkpoints").iterdir()}
    assert set(checkpoints) == {best, 12}
    size = sum(file.stat().st_size for file in checkpoints[12].rglob("*") if file.is_file())
    assert 12 * done.result.parameters <= size < 13 * done.result.parameters, "what Prepare reckons (float32)"


def test_training_stops_when_the_held_out_loss_no_longer_falls(trained: Callable[..., Any]) -> None:
    done = trained(
        training={
            "hyperparameters": {"epochs": 50, "learningRate": 1e-5},
            "earlyStopping": {"patience": 2, "minDelta": 5.0},
        }
    )
    assert sorted(done.validation_losses) == [9, 18, 27]
    assert done.result.steps == 27


def test_a_finished_training_is_not_repeated(a_run: Callable[..., TrainRun], a_context: Any) -> None:
    context = a_context()
    run = a_run(workspace=context.workspace.root, training={"hyperparameters": {"maxSteps": 1}})
    first = runtime.execute(run, context, train)
    second = runtime.execute(run, context, train)
    assert not getattr(first, "reused", True)
    assert second == first.model_copy(update={"reused": True})


def test_the_manifest_vouches_for_model_record_and_losses(trained: Callable[..., Any]) -> None:
    done = trained(training={"hyperparameters": {"maxSteps": 1}})
    manifest = manifests.Manifest.model_validate_json((done.folder / "manifest.json").read_bytes())
    assert {"model/model.safetensors", "model/config.json", "student.json", "losses.jsonl"} <= set(manifest.files)
    assert manifest.files["model/config.json"] == manifests.entry_of(done.folder / "model" / "config.json")
    assert not any(path.startswith("checkpoints") for path in manifest.files)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"student": {"prunedFrom": None, "model": None}}, id="given model"),
        pytest.param({"training": {"objective": {"type": "CrossEntropy"}}}, id="cross-entropy"),
        pytest.param({"generation": {"tail": "Sampled"}}, id="sampled tail"),
        pytest.param({"training": {"hyperparameters": {"packing": False}}}, id="padded"),
        pytest.param({"training": {"gradientCheckpointing": True}}, id="gradient checkpointing"),
        pytest.param({"training": {"precision": "BF16"}}, id="autocast"),
        pytest.param({"training": {"precision": "BF16", "deepspeed": {"zeroStage": 1}}}, id="BF16, ZeRO-1"),
        pytest.param({"training": {"deepspeed": {"zeroStage": 3}}}, id="ZeRO-3"),
    ],
)
def test_every_way_to_train_lowers_the_loss(
    changes: dict[str, Any], trained: Callable[..., Any], teacher: Path
) -> None:
    if "student" in changes:
        changes = {"student": {"prunedFrom": None, "model": {"uri": teacher.as_uri()}}}
        changes["training"] = {"objective": {"type": "CrossEntropy"}}
    done = trained(**_deep(changes, {"training": {"hyperparameters": {"epochs": 4}}}))
    assert sum(done.losses[-3:]) < 0.9 * sum(done.losses[:3])


def _deep(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {k: _deep(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v for k, v in b.items()}


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(
    trained: Callable[..., Any], a_run: Callable[..., TrainRun], a_context: Any
) -> None:
    whole = trained("whole", training={"checkpoints": {"everySteps": 2}})
    context = a_context("stopped")
    run = a_run(workspace=context.workspace.root, training={"checkpoints": {"everySteps": 2}})
    for _ in range(4):
        context.stopping.set()  # as SIGTERM does: seen after the next step
        with pytest.raises(Stopped):
            train.run(run, context)
    context.stopping.clear()
    train.run(run, context)
    folder = context.workspace.local_path(run.folder)
    assert (folder / "losses.jsonl").read_text() == (whole.folder / "losses.jsonl").read_text()
    assert _weights(folder) == _weights(whole.folder)


def _weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_losses_do_not_depend_on_micro_batches_or_packing(stage: int, trained: Callable[..., Any]) -> None:
    hyper = {"maxSteps": 3, "globalBatchSize": 8, "microBatchSize": 1}
    zero = {"deepspeed": {"zeroStage": stage}}
    one = trained("one", training={"hyperparameters": {**hyper}, **zero}, microBatchSize=1)
    four = trained("four", training={"hyperparameters": {**hyper, "packing": False}, **zero}, microBatchSize=4)
    assert four.losses == pytest.approx(one.losses, rel=1e-5)
    assert four.validation_losses == pytest.approx(one.validation_losses, rel=1e-5)


def test_the_losses_do_not_depend_on_the_zero_stage(trained: Callable[..., Any]) -> None:
    losses = [
        trained(
            f"zero-{stage}", training={"hyperparameters": {"maxSteps": 4}, "deepspeed": {"zeroStage": stage}}
        ).losses
        for stage in range(4)
    ]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def test_a_student_that_is_its_teacher_begins_with_nothing_to_learn(trained: Callable[..., Any], teacher: Path) -> None:
    """Rows of another length, one position off, or of another row: each would show as nats at the first step."""
    done = trained(
        student={"prunedFrom": None, "model": {"uri": teacher.as_uri()}},
        training={"objective": {"softWeight": 1.0}, "hyperparameters": {"maxSteps": 1}},
    )
    assert 0 <= done.losses[0] < 1e-3


@pytest.mark.parametrize("type_", ["CrossEntropy", "ForwardKL", "ReverseKL", "JensenShannon", "SkewKL"])
def test_a_batch_has_the_same_loss_in_training_and_in_evaluation(
    teacher: Path, a_run: Callable[..., TrainRun], tmp_path: Path, type_: str
) -> None:
    training = a_run().training
    loss = loss_of(Objective(type=type_), sampled_tail=False)
    batch = pack([an_example(length, scored=type_ != "CrossEntropy") for length in (9, 4, 17)])
    folder = tmp_path / "my 50%20"  # torch reads such a URI without decoding it
    folder.mkdir()
    with engine.together(engine.Place(), (folder / "rendezvous").as_uri()):
        model = load_model(teacher, torch.float32)
        model.set_attn_implementation(attention.install())
        one = engine.Engine(Distiller(model, loss, 512), training, 2, engine.Place())
        before = one.evaluate(batch)
        during = one.step([batch] * 2, 2 * len(batch.supervision), learning_rate=1e-2)
        after = one.evaluate(batch)
    assert float(during.total) == pytest.approx(2 * float(before.total), rel=1e-6)
    assert during.count == 2 * before.count == 2 * len(batch.supervision)
    assert float(after.total) < float(before.total)


def test_adapters_are_exported_merged_and_alone(trained: Callable[..., Any], teacher: Path) -> None:
    from peft import PeftModel

    done = trained(
        student={"prunedFrom": None, "model": {"uri": teacher.as_uri()}, "adapter": {"rank": 4, "alpha": 8}},
        training={"objective": {"type": "CrossEntropy"}, "hyperparameters": {"epochs": 4, "learningRate": 1e-2}},
    )
    assert done.losses[-1] < done.losses[0]
    merged = done.model()
    base = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    ids_BT = torch.arange(10)[None]
    before = base(ids_BT).logits
    adapted = PeftModel.from_pretrained(base, done.folder / "adapter")(ids_BT).logits
    assert not torch.allclose(before, adapted, atol=1e-2)
    assert torch.allclose(merged(ids_BT).logits, adapted, atol=0.1)
    checkpoint = next((done.folder / "checkpoints").rglob("*model_states.pt"))
    assert checkpoint.stat().st_size < (teacher / "model.safetensors").stat().st_size / 2, "frozen weights are left out"


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        pytest.param(
            {"training": {"hyperparameters": {"maxSequenceLength": 16}}}, BadData, "NothingToTrainOn", id="too long"
        ),
        pytest.param(
            {"student": {"prunedFrom": {"layers": 4}}}, BadConfiguration, "NothingToPrune", id="nothing to prune"
        ),
        pytest.param(
            {"student": {"adapter": {"targetModules": ["nowhere"]}}},
            BadConfiguration,
            "AdapterModulesUnknown",
            id="unknown modules",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_sentence(
    changes: dict[str, Any], error: type[Exception], reason: str, trained: Callable[..., Any]
) -> None:
    with pytest.raises(error) as raised:
        trained(**changes)
    assert raised.value.reason == reason  # type: ignore[attr-defined]
    assert str(raised.value).endswith(".")


def test_a_loss_that_is_no_number_ends_the_training_before_it_is_saved(
    trained: Callable[..., Any], teacher: Path, tmp_path: Path
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.no_grad():
        broken.get_input_embeddings().weight[:] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(BadConfiguration, match="became nan at step 1"):
        trained(student={"prunedFrom": None, "model": {"uri": (tmp_path / "broken").as_uri()}})
    assert not list((tmp_path / "workspace").rglob("checkpoint.json"))


def test_progress_tells_steps_losses_and_the_last_checkpoint(
    a_run: Callable[..., TrainRun], a_context: Callable[..., StageContext]
) -> None:
    context = a_context()
    train.run(a_run(workspace=context.workspace.root, training={"hyperparameters": {"maxSteps": 2}}), context)
    report = context.progress.report()
    assert (report.progress.done, report.progress.total, report.progress.unit) == (2, 2, "steps")
    assert report.training is not None
    assert report.training.micro_batch_size == 2
    assert float(report.training.loss) > 0
    assert float(report.training.validation_loss) > 0
    assert float(report.training.tokens_per_second) > 0
    assert report.training.last_checkpoint is not None
    assert report.training.last_checkpoint.step == 2
