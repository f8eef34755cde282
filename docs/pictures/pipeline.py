"""Draws the picture of the pipeline for the README: run it, and it writes pipeline.svg beside itself."""

from __future__ import annotations

from pathlib import Path

STAGES = (
    ("Prepare", "reads every row, asks", "every model, estimates"),
    ("Generate", "the teacher answers;", "text or top-K scores"),
    ("Train", "DeepSpeed; checkpoints,", "resumes after anything"),
    ("Evaluate", "before, after, teacher;", "gates decide"),
    ("Publish", "uploads, reads back,", "then says where"),
)
WIDTH, BOX, GAP, TOP = 1000, 168, 25, 120

STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2937; }
  .box { fill: #ffffff; stroke: #94a3b8; stroke-width: 1.2; }
  .teacher { fill: #eef2ff; stroke: #6366f1; stroke-width: 1.2; }
  .store { fill: #f1f5f9; stroke: #cbd5e1; }
  .cr { fill: #0f766e; } .cr-text { fill: #ffffff; font-weight: 600; font-size: 15px; }
  .name { font-weight: 600; font-size: 16px; } .small { font-size: 12px; fill: #475569; }
  .line { stroke: #64748b; stroke-width: 1.5; fill: none; marker-end: url(#head); }
  .dash { stroke: #6366f1; stroke-width: 1.3; fill: none; stroke-dasharray: 4 3; marker-end: url(#head); }
"""


def text(x: float, y: float, words: str, kind: str, anchor: str = "middle") -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """One rounded box."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="{kind}"/>'


def picture() -> str:
    """The whole SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 400" role="img" '
        'aria-label="A DistillationJob runs Prepare, Generate, Train, Evaluate and Publish">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#64748b"/></marker></defs>',
        f'<rect width="{WIDTH}" height="400" rx="12" fill="#f8fafc"/>',
        box(30, 28, 940, 46, "cr"),
        text(500, 57, "DistillationJob — kubectl apply, Helm, GitOps, or kubedistill run without a cluster", "cr-text"),
    ]
    for index, (name, first, second) in enumerate(STAGES):
        x = 30 + index * (BOX + GAP)
        parts += [
            box(x, TOP, BOX, 92, "box"),
            text(x + BOX / 2, TOP + 30, name, "name"),
            text(x + BOX / 2, TOP + 54, first, "small"),
            text(x + BOX / 2, TOP + 72, second, "small"),
            f'<path class="line" d="M{x + BOX / 2} 74 V{TOP - 2}"/>',
            f'<path class="line" d="M{x + BOX / 2} {TOP + 92} V316"/>',
        ]
        if index:
            parts.append(f'<path class="line" d="M{x - GAP} {TOP + 46} H{x - 2}"/>')
    x = 30 + BOX + GAP
    parts += [
        box(x + 8, 242, BOX - 16, 48, "teacher"),
        text(x + BOX / 2, 262, "Teacher: vLLM", "name"),
        text(x + BOX / 2, 280, "lives only this long", "small"),
        box(30, 318, 940, 56, "store"),
        text(500, 342, "Workspace: a volume or an object store", "name"),
        text(
            500,
            362,
            "a manifest written last commits every folder; nothing finished is made twice",
            "small",
        ),
        "</svg>",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture() + "\n")
