"""The report of Prepare, for people: what was found in the data, and what is expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kubedistill_api.status import Estimate, ResolvedModel
from kubedistill_trainer.preparation.choosing import Choice
from kubedistill_trainer.preparation.left_out import FILE, LeftOut


@dataclass(frozen=True)
class Facts:
    """What is known beside the rows."""

    estimate: Estimate
    published: Sequence[tuple[str, int]]
    """What of the output, and its bytes."""
    models: Sequence[ResolvedModel]
    notes: Sequence[str]


def render(choice: Choice, out: LeftOut, lengths: Sequence[int], facts: Facts) -> str:
    """Markdown. `lengths` are the tokens of the training prompts."""
    estimate, notes = facts.estimate, facts.notes
    left_out = [f"| left out: {reason.words} ({reason}) | {count} |" for reason, count in out.counts.items()]
    left_out += [f"| beyond data.maxRows | {choice.beyond} |"] if choice.beyond else []
    labels = Counter(row.label for row in (*choice.train, *choice.valid) if row.label)
    parts = [
        "# Before the distillation\n",
        "| Rows | |\n|---|---|",
        f"| training prompts | {len(choice.train)} |\n| held-out prompts | {len(choice.valid)} |",
        *left_out,
        *([f"\nRows that were left out, each with its reason and its place: [{FILE}]({FILE})."] if out.counts else []),
        f"\nA prompt has {quantile(lengths, 0.5)} tokens in the middle, {quantile(lengths, 0.95)} at the 95th "
        f"percentile, {max(lengths, default=0)} at most.\n",
        "| Expected | |\n|---|---|",
        f"| tokens to generate, at most | {estimate.tokens_to_generate:,} |",
        f"| memory of each teacher device | {estimate.teacher_memory_bytes / 2**30:.1f} GiB |",
        f"| memory of each training device | {estimate.student_memory_bytes / 2**30:.1f} GiB |",
        f"| GPU-hours | {estimate.gpu_hours} |",
        *(f"| {what} | {size / 2**30:.2f} GiB |" for what, size in facts.published),
        "",
        "| Model | Parameters | Revision |\n|---|---|---|",
        *(f"| {m.role}: {m.uri} | {m.parameters:,} | {m.revision[:19]} |" for m in facts.models),
    ]
    if labels and len(labels) <= 50:
        parts += [
            "\n| Label | Rows |\n|---|---|",
            *(f"| {_cell(label)} | {count} |" for label, count in labels.most_common()),
        ]
    if notes:
        parts += ["\n## Notes\n", *(f"- {note}" for note in notes)]
    if out.shown:
        more = out.unusable - len(out.shown)
        parts += ["\n## Rows that cannot be used\n", *(f"- {line}" for line in out.shown)]
        parts += [f"- and {more} more in [{FILE}]({FILE})"] if more else []
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text in a cell of a table: on one line, and no end of the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def quantile(lengths: Sequence[int], share: float) -> int:
    """The length below which this share of the prompts lies."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0
