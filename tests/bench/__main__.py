"""Runs the benchmarks, each in a process of its own, and writes all their figures into one JSON: `make bench`.

    python tests/bench                            all of them
    python tests/bench --only loss                one of them; what it does not know itself is told to that one:
    python tests/bench --only loss --tokens 2048

A figure is {name, value, unit, bound, holds, command, machine, versions, seconds}; `holds` is null where nothing is
promised, `seconds` are those of the whole command. Everything else that a benchmark found is in `build/bench-*.json`.

Exit code 1: a bound does not hold, or a benchmark was not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("loss", "step", "generate", "data")
SCRIPTS = Path("tests/bench")
TOLD = ("command", "machine", "versions", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser("python tests/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="the benchmarks (default: all)")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="default: %(default)s")
    asked, more = parser.parse_known_args()
    if more and len(asked.only) > 1:
        parser.error(f"{' '.join(more)}: write --only with one benchmark, which is told this")
    found = [figure for name in asked.only for figure in figures_of(name, more)]
    asked.output.write_text(json.dumps({"figures": found}, indent=1) + "\n")
    print(table(found))
    print(f"\n{asked.output}")
    return 1 if any(figure["holds"] is False for figure in found) else 0


def figures_of(name: str, more: Sequence[str]) -> list[dict[str, Any]]:
    """What one benchmark finds; if it finds nothing, that it does not hold."""
    script = f"bench_{name}.py"
    output = Path("build") / f"bench-{name}.json"
    output.unlink(missing_ok=True)
    print(f"\n$ python {SCRIPTS / script} {' '.join(more)}", flush=True)
    done = subprocess.run([sys.executable, Path(__file__).with_name(script), *more], check=False)
    if not output.exists():
        missing = {"name": f"not measured, exit code {done.returncode}", "value": None, "unit": "", "bound": "measured"}
        return [missing | {"holds": False, "command": " ".join(["python", str(SCRIPTS / script), *more])}]
    found = json.loads(output.read_text())
    return [figure | {key: found[key] for key in TOLD} for figure in found["figures"]]


def table(figures: Sequence[dict[str, Any]]) -> str:
    """What holds and what does not, under the commands that measured it."""
    widest = max(len(figure["name"]) for figure in figures)
    lines, command = [], ""
    for figure in figures:
        if figure["command"] != command:
            command = figure["command"]
            lines += ["", f"$ {command}"]
        value = "-" if figure["value"] is None else f"{figure['value']:,.4g}"
        verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[figure["holds"]]
        measured = f"{figure['name']:{widest}}  {value:>10} {figure['unit']:6}"
        lines.append(f"{measured}{figure['bound']:>12}  {verdict}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
