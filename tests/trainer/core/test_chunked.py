"""The chunked projection against the plain one, for every option, in value and in gradient."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kubedistill_api.training import Objective
from kubedistill_trainer.core.chunked import chunked_loss, student_view
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import cross_entropy, forward_kl_bucket, loss_of
from kubedistill_trainer.core.signals import NO_TOKEN, Supervision, Text, TopK

N, V, H = 23, 101, 16
ROW = V * 8  # bytes of one position's logits in float64

LOSSES = {
    "cross-entropy": loss_of(Objective(type="CrossEntropy"), sampled_tail=False),
    "bucket": loss_of(Objective(type="ForwardKL", soft_weight=1.0), sampled_tail=False),
    "sampled": loss_of(Objective(type="ForwardKL", soft_weight=1.0), sampled_tail=True),
    "mixed": loss_of(Objective(type="ForwardKL", soft_weight=0.6), sampled_tail=False),
    "reverse": loss_of(Objective(type="ReverseKL", soft_weight=0.6), sampled_tail=False),
    "js-bucket": loss_of(Objective(type="JensenShannon", soft_weight=0.6, beta=0.9), sampled_tail=False),
    "js-sampled": loss_of(Objective(type="JensenShannon", soft_weight=1.0), sampled_tail=True),
    "skew-bucket": loss_of(Objective(type="SkewKL", soft_weight=1.0), sampled_tail=False),
    "skew-sampled": loss_of(Objective(type="SkewKL", soft_weight=0.6, beta=0.3), sampled_tail=True),
}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias_V": torch.linspace(-1, 1, V, dtype=torch.float64)},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "all": {"bias_V": torch.linspace(-1, 1, V, dtype=torch.float64), "scale": 1.7, "softcap": 5.0},
}


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(N, H, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(V, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def supervision(supervise_with) -> Supervision:
    logits = 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return supervise_with(logits, 7)


def plain_logits(hidden_NH: Tensor, head: Head) -> Tensor:
    logits_NV = hidden_NH @ head.weight_VH.T
    logits_NV = (logits_NV if head.bias_V is None else logits_NV + head.bias_V) * head.scale
    return logits_NV if head.softcap is None else head.softcap * (logits_NV / head.softcap).tanh()


def with_gradients(head_options: dict[str, Any], hidden: Tensor, weight: Tensor) -> tuple[Tensor, Head, list[Tensor]]:
    bias = head_options.get("bias_V")
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]
    options = {**head_options, **({"bias_V": leaves[2]} if bias is not None else {})}
    return leaves[0], Head(leaves[1], **options), leaves


@pytest.mark.parametrize("chunk_rows", [1, 4, N - 1, N, 10 * N], ids=lambda rows: f"{rows}-rows")
@pytest.mark.parametrize("head_options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_chunked_equals_plain_in_value_and_gradient(
    loss, head_options, chunk_rows, hidden, weight, supervision, plain_logprobs
):
    states, head, leaves = with_gradients(head_options, hidden, weight)
    chunked = chunked_loss(states, head, supervision, loss, chunk_bytes=chunk_rows * ROW)
    gradients = torch.autograd.grad(chunked.total * 0.37, leaves)

    states, head, leaves = with_gradients(head_options, hidden, weight)
    plain = loss(plain_logprobs(plain_logits(states, head), supervision), supervision)
    expected = torch.autograd.grad(plain.total * 0.37, leaves)

    torch.testing.assert_close(chunked.total, plain.total, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(dict(chunked.parts), dict(plain.parts), rtol=1e-11, atol=1e-11)
    assert chunked.count == N
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_in_float32_it_stays_within_1e_5_of_the_float64_truth(loss, hidden, weight, supervision, plain_logprobs):
    states, head, leaves = with_gradients({}, hidden, weight)
    truth = loss(plain_logprobs(plain_logits(states, head), supervision), supervision).total
    wanted = torch.autograd.grad(truth, leaves)
    states, head, leaves = with_gradients({}, hidden.float(), weight.float())
    value = chunked_loss(states, head, as_float32(supervision), loss, chunk_bytes=5 * ROW).total
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(truth.item(), rel=1e-5, abs=1e-4)
    for gradient, exact in zip(torch.autograd.grad(value, leaves), wanted, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_gradient_is_that_of_the_returned_loss_by_finite_differences(loss, hidden, weight, supervision):
    def value(states: Tensor, rows: Tensor) -> Tensor:
        return chunked_loss(states, Head(rows, scale=0.5, softcap=4.0), supervision, loss, chunk_bytes=5 * ROW).total

    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    gradients = torch.autograd.grad(value(*leaves), leaves)
    draw, step = torch.Generator().manual_seed(9), 1e-6
    for _ in range(4):
        ahead = [torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype) for leaf in leaves]
        slope = sum((gradient * way).sum() for gradient, way in zip(gradients, ahead, strict=True))
        with torch.no_grad():
            up, down = (
                value(*(leaf + sign * step * way for leaf, way in zip(leaves, ahead, strict=True))) for sign in (1, -1)
            )
        torch.testing.assert_close((up - down) / (2 * step), slope, rtol=1e-6, atol=1e-6)


def test_text_alone_needs_no_candidates(hidden, weight):
    targets = torch.arange(N)
    states, head, leaves = with_gradients({}, hidden, weight)
    total = chunked_loss(states, head, Supervision(targets, Text()), cross_entropy, chunk_bytes=4 * ROW).total
    gradients = torch.autograd.grad(total, leaves)
    states, head, leaves = with_gradients({}, hidden, weight)
    plain = torch.nn.functional.cross_entropy(states @ head.weight_VH.T, targets, reduction="sum")
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, leaves))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_whole_vocabulary_of_candidates_leaves_every_gradient_finite(loss, hidden, weight, supervise_with):
    teacher = torch.randn(N, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    states, head, leaves = with_gradients({}, hidden, weight)
    total = chunked_loss(states, head, supervise_with(teacher, V), loss, chunk_bytes=4 * ROW).total
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(total, leaves))


def test_the_whole_vocabulary_as_candidates_has_no_tail(hidden, weight, supervise_with, plain_logprobs):
    teacher = torch.randn(N, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    everything = supervise_with(teacher, V)
    states, head, leaves = with_gradients({}, hidden, weight)
    total = chunked_loss(states, head, everything, forward_kl_bucket, chunk_bytes=4 * ROW).total
    gradients = torch.autograd.grad(total, leaves)
    states, head, leaves = with_gradients({}, hidden, weight)
    p, q = teacher.log_softmax(-1), (states @ head.weight_VH.T).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    torch.testing.assert_close(total, exact)
    torch.testing.assert_close(gradients, torch.autograd.grad(exact, leaves))


def test_fillers_count_for_nothing_in_value_and_gradient(hidden, weight, supervision):
    signal = supervision.teacher
    filler = torch.full((N, 2), -80.0, dtype=torch.float64)
    longer = TopK(
        torch.cat([signal.ids_NK, torch.full((N, 2), NO_TOKEN)], 1),
        torch.cat([signal.logprobs_NK, filler], 1),
        signal.tail_N,
        signal.target_N,
    )
    results = []
    for teacher in (signal, longer):
        states, head, leaves = with_gradients({}, hidden, weight)
        total = chunked_loss(states, head, Supervision(supervision.target_ids_N, teacher), LOSSES["mixed"]).total
        results.append((total, *torch.autograd.grad(total, leaves)))
    torch.testing.assert_close(results[0], results[1])


def test_a_student_that_is_its_own_teacher_has_no_loss_and_no_gradient(hidden, weight, supervise_with):
    states, head, leaves = with_gradients({}, hidden.float(), weight.float())
    itself = supervise_with((hidden @ weight.T).float(), 5)
    total = chunked_loss(states, head, itself, forward_kl_bucket).total
    assert abs(total.item()) < 1e-4
    for gradient in torch.autograd.grad(total, leaves):
        assert gradient.abs().max().item() < 1e-4


def test_a_very_sure_student_keeps_the_relative_precision_of_its_tail(supervise_with):
    """The tail's mass is 1e-17 here; 1 - Q would be zero in float32 and its logarithm -inf."""
    states = torch.tensor([[40.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [0.0]])
    teacher = supervise_with(torch.zeros(1, 3), 1, torch.tensor([0]))
    total = chunked_loss(states, Head(weight), teacher, forward_kl_bucket).total
    total.backward()
    first = int(teacher.candidates[0, 0])
    exact = (1 / 3) * (torch.tensor(1 / 3).log() - (0.0 if first == 0 else -40.0))
    rest = (2 / 3) * (torch.tensor(2 / 3).log() - (torch.tensor(2.0).log() - 40 if first == 0 else 0.0))
    assert total.item() == pytest.approx((exact + rest).item(), rel=1e-5)
    assert torch.isfinite(states.grad).all()


def test_no_targets_at_all_give_zero_and_a_zero_gradient(hidden, weight, supervision):
    states, head, leaves = with_gradients({}, hidden[:0], weight)
    loss = chunked_loss(states, head, supervision[:0], LOSSES["mixed"])
    assert (loss.total.item(), loss.count) == (0.0, 0)
    assert all(gradient.abs().sum().item() == 0 for gradient in torch.autograd.grad(loss.total, leaves))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_nothing_of_size_positions_times_vocabulary_is_ever_allocated(loss, hidden, weight, supervision):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    states, head, leaves = with_gradients({}, hidden, weight)
    with Largest() as largest:
        total = chunked_loss(states, head, supervision, loss, chunk_bytes=4 * ROW).total
        torch.autograd.grad(total, leaves)
    assert largest.numel == max(4 * V, V * H)
    assert largest.numel < N * V


@pytest.mark.parametrize("what", ["loss", "view"])
def test_the_logits_of_a_chunk_are_gone_before_the_next(what, hidden, weight, supervision):
    class Alive(TorchDispatchMode):
        chunks: list[weakref.ref[Any]] = []
        most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and result.shape[1] == V:
                self.chunks.append(weakref.ref(result.untyped_storage()))
                self.most = max(self.most, sum(chunk() is not None for chunk in self.chunks))
            return result

    states, head, _ = with_gradients({}, hidden, weight)
    with Alive() as alive:
        if what == "loss":
            chunked_loss(states, head, supervision, LOSSES["mixed"], chunk_bytes=4 * ROW)
        else:
            student_view(states, head, supervision, chunk_bytes=4 * ROW)
    assert len(alive.chunks) == 6
    assert alive.most == 1


def test_a_frozen_head_gets_no_gradient_and_the_states_get_the_same(hidden, weight, supervision):
    states, head, leaves = with_gradients({}, hidden, weight)
    wanted = torch.autograd.grad(chunked_loss(states, head, supervision, LOSSES["mixed"]).total, leaves)[0]
    states = hidden.clone().requires_grad_()
    total = chunked_loss(states, Head(weight), supervision, LOSSES["mixed"]).total
    torch.testing.assert_close(torch.autograd.grad(total, [states])[0], wanted)


def test_without_gradients_the_value_is_the_same(hidden, weight, supervision):
    states, head, _ = with_gradients({}, hidden, weight)
    training = chunked_loss(states, head, supervision, LOSSES["mixed"])
    with torch.no_grad():
        evaluation = chunked_loss(states, head, supervision, LOSSES["mixed"])
    assert not evaluation.total.requires_grad
    torch.testing.assert_close(evaluation.total, training.total.detach())


def test_a_second_backward_pass_is_an_error_not_a_wrong_gradient(hidden, weight, supervision):
    states, head, _ = with_gradients({}, hidden, weight)
    total = chunked_loss(states, head, supervision, LOSSES["mixed"]).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        total.backward()


def test_half_precision_states_get_half_precision_gradients_near_the_truth(hidden, weight, supervision):
    states, head, leaves = with_gradients({}, hidden.bfloat16(), weight.bfloat16())
    total = chunked_loss(states, head, as_float32(supervision), LOSSES["mixed"]).total
    halves = torch.autograd.grad(total, leaves)
    exact_states, exact_head, exact_leaves = with_gradients({}, hidden.bfloat16().double(), weight.bfloat16().double())
    exact = chunked_loss(exact_states, exact_head, supervision, LOSSES["mixed"]).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.01)
    for half, wanted in zip(halves, torch.autograd.grad(exact, exact_leaves), strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), wanted, rtol=0.05, atol=0.08)


def test_under_autocast_products_are_in_half_precision_and_losses_are_not(hidden, weight, supervision):
    states, head, leaves = with_gradients({}, hidden.float(), weight.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = chunked_loss(states, head, as_float32(supervision), LOSSES["mixed"]).total
    exact = chunked_loss(states, head, as_float32(supervision), LOSSES["mixed"]).total
    assert total.dtype == torch.float32
    assert total.item() != exact.item()
    assert total.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("where", ["target", "candidate"])
def test_a_token_that_the_student_does_not_have_is_an_error(where, hidden, weight, supervision):
    ids, signal = supervision.target_ids_N.clone(), supervision.teacher
    if where == "target":
        ids[3] = V
    else:
        signal.ids_NK[3, 2] = V
    with pytest.raises(ValueError, match=f"{where} token {V} is outside the student's vocabulary of {V}"):
        chunked_loss(hidden, Head(weight), Supervision(ids, signal), forward_kl_bucket)


def test_padded_rows_of_the_vocabulary_take_no_mass_and_get_no_gradient(tiny_llama, supervise_with):
    model = tiny_llama(vocabulary=64)
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    supervision = supervise_with(torch.randn(5, 61, generator=torch.Generator().manual_seed(1)), 4)
    total = chunked_loss(states, Head.of(model, 61), supervision, LOSSES["mixed"]).total
    total.backward()
    with torch.no_grad():
        model.lm_head.weight[61:] = 100.0
    again = chunked_loss(states, Head.of(model, 61), supervision, LOSSES["mixed"]).total
    assert again.item() == total.item()
    assert float(model.lm_head.weight.grad[61:].abs().sum()) == 0
    assert float(model.lm_head.weight.grad[:61].abs().sum()) > 0


def test_the_head_speaks_as_the_models_own_forward_does(tiny_llama):
    model = tiny_llama()
    ids = torch.arange(10)[None]
    head = Head.of(model, 61)
    states = model.model(ids).last_hidden_state
    torch.testing.assert_close(plain_logits(states, head), model(ids).logits)


def test_a_head_with_an_adapter_is_refused(tiny_llama):
    model = get_peft_model(
        tiny_llama(tie_word_embeddings=False), LoraConfig(target_modules=["lm_head"], r=2)
    ).get_base_model()
    with pytest.raises(ValueError, match="only a plain linear layer"):
        Head.of(model, 61)


def test_a_head_smaller_than_the_tokenizer_is_refused(tiny_llama):
    with pytest.raises(ValueError, match="61 output rows, its tokenizer 62 tokens"):
        Head.of(tiny_llama(), 62)


@pytest.mark.parametrize("chunk_rows", [1, 6, 2 * N], ids=lambda rows: f"{rows}-rows")
def test_a_view_is_the_log_softmax_and_its_first_choice(chunk_rows, hidden, weight, supervision, plain_logprobs):
    view = student_view(hidden, Head(weight), supervision, chunk_bytes=chunk_rows * ROW)
    logits = hidden @ weight.T
    plain = plain_logprobs(logits, supervision)
    torch.testing.assert_close(view.logprobs.topk_NK, plain.topk_NK)
    torch.testing.assert_close(view.logprobs.tail_N, plain.tail_N)
    torch.testing.assert_close(view.logprobs.target_N, plain.target_N)
    assert view.top_ids_N.tolist() == logits.argmax(-1).tolist()


def test_a_first_choice_among_the_candidates_and_one_in_the_tail_are_both_seen(supervise_with):
    weight = torch.eye(4)
    supervision = supervise_with(torch.tensor([[9.0, 1, 0, 0], [9.0, 1, 0, 0]]), 2)
    view = student_view(torch.tensor([[0.0, 5, 1, 2], [0.0, 1, 2, 5]]), Head(weight), supervision)
    assert view.top_ids_N.tolist() == [1, 3]


def as_float32(supervision: Supervision) -> Supervision:
    signal = supervision.teacher
    assert isinstance(signal, TopK)
    single = TopK(signal.ids_NK, signal.logprobs_NK.float(), signal.tail_N.float(), signal.target_N.float())
    return Supervision(supervision.target_ids_N, single)
