"""A teacher beside the student: its terms are added, it is neither trained nor saved, and no split changes anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kubedistill_api.training import HiddenLayers
from kubedistill_trainer.beside import ATTENTION, HIDDEN_STATES, Matching, TeacherBeside, Terms
from kubedistill_trainer.core.batching import MicroBatch, pack, pad
from kubedistill_trainer.core.losses import cross_entropy
from kubedistill_trainer.core.losses.hidden_states import layer_pairs
from kubedistill_trainer.distiller import Distiller


def terms(hidden: float, attention: float, depth: int = 2) -> Terms:
    return Terms(layer_pairs(HiddenLayers.EVENLY_SPACED, depth, 3) if hidden else (), hidden, attention)


TERMS = {"hidden": terms(1.0, 0.0), "attention": terms(0.0, 1.0), "both": terms(0.5, 2.0)}
every = pytest.mark.parametrize("asked", TERMS.values(), ids=TERMS)


@pytest.fixture
def beside(tiny_llama):
    """A student of two layers with a teacher of three, wider and with other heads, beside it."""

    def build(asked: Terms) -> tuple[Distiller, TeacherBeside]:
        shape = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
        teacher, student = TeacherBeside(tiny_llama(layers=3, seed=1, **shape)), tiny_llama(layers=2)
        torch.manual_seed(2)
        return Distiller(student, cross_entropy, 61, Matching(student, teacher, asked)), teacher

    return build


def gradients(distiller: Distiller, batches: list[MicroBatch], targets: int) -> list[Tensor]:
    distiller.zero_grad()
    for batch in batches:
        (distiller(batch)[0] / targets).backward()
    return [weight.grad.clone() for weight in distiller.parameters()]


@every
def test_terms_are_added_with_their_weights_and_reported_without(asked, beside, some_examples):
    batch = pack(some_examples((17, 3, 30)))
    distiller, _ = beside(asked)
    plain = Distiller(distiller.model, cross_entropy, 61)(batch)[0]
    total, parts = distiller(batch)
    weights = {HIDDEN_STATES: asked.hidden_weight, ATTENTION: asked.attention_weight}
    assert set(parts) == {name for name, weight in weights.items() if weight}
    torch.testing.assert_close(total, plain + sum(weights[name] * part for name, part in parts.items()))
    assert all(float(part) > 0 and not part.requires_grad for part in parts.values())


@every
@pytest.mark.parametrize("layout", ["one-by-one", "padded", "packed"])
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_split(layout, asked, beside, some_examples):
    examples = some_examples((17, 3, 30, 8))
    targets = sum(example.targets for example in examples)
    distiller, _ = beside(asked)
    batches = {
        "one-by-one": [pack([example]) for example in examples],
        "padded": [pad(examples, pad_id=1)],
        "packed": [pack(examples[:1]), pack(examples[1:])],
    }[layout]
    parts, wholes = (gradients(distiller, each, targets) for each in (batches, [pack(examples)]))
    for part, whole in zip(parts, wholes, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=2e-6)


@every
def test_activations_that_are_computed_twice_change_nothing(asked, beside, some_examples):
    batch = [pack(some_examples((17, 9)))]
    distiller, _ = beside(asked)
    distiller.train()
    once = gradients(distiller, batch, 10)
    distiller.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for twice, wanted in zip(gradients(distiller, batch, 10), once, strict=True):
        torch.testing.assert_close(twice, wanted)


@every
def test_the_teacher_is_neither_trained_nor_saved(asked, beside, some_examples):
    distiller, teacher = beside(asked)
    before = {name: weight.clone() for name, weight in teacher.model.state_dict().items()}
    assert all(float(grad.abs().sum()) > 0 for grad in gradients(distiller, [pack(some_examples((17, 9)))], 1))
    distiller.train()
    assert not teacher.model.training
    assert all(weight.grad is None for weight in teacher.model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.model.state_dict().items())
    new = [name for name in distiller.state_dict() if not name.startswith("model.")]
    assert new == [f"matching.states.projections.{pair}.weight" for pair in range(len(asked.pairs))]


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_its_inside(tiny_llama, some_examples):
    student = tiny_llama(layers=3)
    matching = Matching(student, TeacherBeside(tiny_llama(layers=3)), terms(1.0, 1.0, depth=3))
    _, parts = Distiller(student, cross_entropy, 61, matching)(pack(some_examples((17, 9))))
    assert abs(float(parts[HIDDEN_STATES])) < 1e-4
    assert abs(float(parts[ATTENTION])) < 1e-4
