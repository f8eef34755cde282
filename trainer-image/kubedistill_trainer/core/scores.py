"""How good a student is: on its own answers, and on the teacher's answers read token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from kubedistill_api.base import Task
from kubedistill_trainer.core.answers import agrees, normalized
from kubedistill_trainer.core.chunked import View
from kubedistill_trainer.core.losses import cross_entropy, forward_kl_bucket, forward_kl_sampled
from kubedistill_trainer.core.signals import Supervision, TopK
from kubedistill_trainer.core.words import words


@dataclass(frozen=True)
class Reading:
    """Sums over the target tokens of the teacher's answers, which the student reads but does not write.

    The divergence comes in both readings of the tail: the bucket is a lower bound, the sampled one is unbiased if
    the answers were sampled at temperature 1 from the whole distribution.
    """

    count: int = 0
    negative_log_likelihood: float = 0.0
    scored: int = 0
    """How many of the tokens the teacher gave its distribution for; 0 with `signal: Text`."""
    kl_bucket: float = 0.0
    kl_sampled: float = 0.0
    agreements: int = 0
    """Tokens at which both have the same first choice."""

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.count + other.count,
            self.negative_log_likelihood + other.negative_log_likelihood,
            self.scored + other.scored,
            self.kl_bucket + other.kl_bucket,
            self.kl_sampled + other.kl_sampled,
            self.agreements + other.agreements,
        )

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of the teacher's tokens; infinity beyond a float's range."""
        mean = self.negative_log_likelihood / self.count
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def agreement(self) -> float | None:
        """Share of tokens at which student and teacher have the same first choice."""
        return self.agreements / self.scored if self.scored else None

    def teacher_kl(self, *, sampled_tail: bool) -> float | None:
        """Mean KL(teacher || student) in nats a token."""
        total = self.kl_sampled if sampled_tail else self.kl_bucket
        return total / self.scored if self.scored else None


def read(view: View, supervision: Supervision) -> Reading:
    """One batch of the teacher's answers, as the student sees them."""
    likelihood = float(cross_entropy(view.logprobs, supervision).total)
    if not isinstance(supervision.teacher, TopK):
        return Reading(len(supervision), likelihood)
    teacher = supervision.teacher
    first_N = teacher.ids_NK.gather(-1, teacher.logprobs_NK.argmax(-1, keepdim=True)).squeeze(-1)
    return Reading(
        len(supervision),
        likelihood,
        len(supervision),
        float(forward_kl_bucket(view.logprobs, supervision).total),
        float(forward_kl_sampled(view.logprobs, supervision).total),
        int((first_N == view.top_ids_N).sum()),
    )


def accuracy(answers: Sequence[str], references: Sequence[str], task: Task, labels: Sequence[str] = ()) -> float:
    """Share of answers that say what the reference says; how that is read depends on the task."""
    pairs = list(zip(answers, references, strict=True))
    return _mean([agrees(answer, reference, task, labels) for answer, reference in pairs])


def exact_match(answers: Sequence[str], references: Sequence[str], task: Task = Task.CONVERSATION) -> float:
    """Share of answers equal to the reference: Math: as numbers; else but for case, spacing and outer punctuation."""
    pairs = zip(answers, references, strict=True)
    if task is Task.MATH:
        return _mean([agrees(answer, reference, task) for answer, reference in pairs])
    return _mean([normalized(answer) == normalized(reference) for answer, reference in pairs])


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU by sacrebleu, 0 to 100."""
    return float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score) if answers else 0.0


class _Words(Tokenizer):  # type: ignore[misc]  # rouge-score has no types
    """Words of any alphabet: rouge-score's own tokenizer drops all but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F1 by rouge-score, 0 to 1, over words of any alphabet; of ASCII texts what rouge-score says."""
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(answers, references, strict=True)
    return _mean([scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs])


def retained_share(student: float, teacher: float, *, lower_is_better: bool = False) -> float | None:
    """How much of the teacher's score the student has: student / teacher, or the inverse where lower is better.

    None where a share means nothing: a teacher (or, inverted, a student) at zero.
    """
    part, whole = (teacher, student) if lower_is_better else (student, teacher)
    return part / whole if whole > 0 else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank): 0.95 gives p95."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
