"""Write the tables and plots of the studies.

    python examples/studies/report.py                          from the results that are kept here, into docs/
    python examples/studies/report.py --results build/studies  from your own, into build/studies/

In docs/distillation.md a study's part stands between `<!-- study: NAME -->` and `<!-- end of study -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablations.plots import plot
from ablations.points import RENORMALISED, STUDIES, Study
from ablations.results import Line, Results
from ablations.tables import COLUMNS, paired_spread, rows_of, spread, table

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
DOCUMENT = REPOSITORY / "docs" / "distillation.md"
PICTURES = "pictures/studies"
"""Relative to the document."""
_PART = re.compile(r"(<!-- study: ([\w-]+) -->\n).*?(<!-- end of study -->)", re.DOTALL)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: examples/studies/results")
    asked = parser.parse_args(words)
    lines = Results(asked.results).lines()
    if not lines:
        print(f"No results in {asked.results}: run examples/studies/run.py --results {asked.results}", file=sys.stderr)
        return 2
    if asked.results.resolve() == RESULTS:
        written = into_docs(lines)
    else:
        pictures = {f"{name}.svg": picture for name, picture in pictures_of(lines).items()}
        text = "\n\n".join(
            f"## {study.question}\n\n{part(study, lines, '.')}" for study in STUDIES if has(study, lines)
        )
        written = {asked.results / name: content for name, content in {**pictures, "studies.md": text + "\n"}.items()}
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path)
    return 0


def into_docs(lines: list[Line]) -> dict[Path, str]:
    """The document and its pictures as they should be."""
    pictures = {DOCUMENT.parent / PICTURES / f"{name}.svg": text for name, text in pictures_of(lines).items()}
    return {DOCUMENT: filled(DOCUMENT.read_text(encoding="utf-8"), parts_of(lines)), **pictures}


def filled(document: str, parts: Mapping[str, str]) -> str:
    """A document with its parts replaced. Raises ValueError for a part that there is nothing for."""

    def replaced(found: re.Match[str]) -> str:
        if found[2] not in parts:
            raise ValueError(f"the document has a part for {found[2]}, of which nothing is measured")
        return f"{found[1]}{parts[found[2]]}\n{found[3]}"

    return _PART.sub(replaced, document)


def parts_of(lines: list[Line]) -> dict[str, str]:
    """By name: that of a study, or `setting` for what goes for all of them."""
    return {study.name: part(study, lines, PICTURES) for study in STUDIES if has(study, lines)} | {
        "setting": setting(lines)
    }


def pictures_of(lines: list[Line]) -> dict[str, str]:
    """SVGs by the studies' names."""
    figure, head, _ = COLUMNS[0]
    return {
        study.name: plot(study.question, rows_of(study, lines), figure, f"{head}, nats a token, held out")
        for study in STUDIES
        if has(study, lines)
    }


def has(study: Study, lines: list[Line]) -> bool:
    """Whether there is something to compare."""
    return len(rows_of(study, lines)) > 1


def part(study: Study, lines: list[Line], pictures: str) -> str:
    """A study's picture and table."""
    return f"![{study.question}]({pictures}/{study.name}.svg)\n\n{table(study, rows_of(study, lines))}"


def setting(lines: list[Line]) -> str:
    """How many points there are, what they cost, where they ran, and what seeds alone do."""
    seeds = sorted({line.point.seed for line in lines})
    machines = sorted({f"{line.machine['cpu']}, threads: {line.machine['threads']}" for line in lines})
    versions = sorted({f"torch {line.machine['torch']}, transformers {line.machine['transformers']}" for line in lines})
    hours = sum(line.cost["cpu_seconds"] for line in lines) / 3600
    sentences = [
        f"{len(lines)} trainings with seeds {', '.join(map(str, seeds))}, {hours:.1f} CPU hours of training in all "
        f"({'; '.join(machines)}; {'; '.join(versions)})."
    ]
    sound = [line for line in lines if line.point.tail != RENORMALISED]  # those end anywhere
    alone, paired = spread(sound), paired_spread(sound)
    if alone is not None:
        of_gaps = "" if paired is None else f", of the difference from the base at the same seed {paired:.3f}"
        sentences.append(f"The standard deviation of the KL between seeds of one point is {alone:.3f}{of_gaps}")
        sentences[-1] += " (the renormalised loss left out)."
    return " ".join(sentences)


if __name__ == "__main__":
    sys.exit(main())
