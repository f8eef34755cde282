"""The prompts of the studies: those of examples/data, and more of their kind out of templates. Pure, without chance."""

from __future__ import annotations

import hashlib
import json
from itertools import product as each_with_each
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "data"
SYSTEM = "Answer in one sentence."
"""Short, so that few tokens go into reading it; answers are shorter for it as well."""

_WRITTEN = ("support-train.jsonl", "support-labelled.jsonl")
_HELD_OUT = ("support-valid.jsonl", "support-labelled-valid.jsonl")

_TROUBLES = {
    "Murra vacuum": (
        "stops in the middle of the kitchen",
        "does not find its dock in the evening",
        "leaves a strip of dust along the wall",
        "has forgotten the map of the upper floor",
        "is much louder than it was in the first month",
        "turns in circles on the bath mat",
        "shows a full bin although I emptied it",
    ),
    "Trindle thermostat": (
        "shows a temperature that is three degrees too high",
        "heats the bedroom during the night",
        "has lost its schedule after a power cut",
        "does not react to the app any more",
        "asks for a code that I never set",
        "switches the boiler on and off every minute",
        "has a dark display since this morning",
    ),
    "Okovi doorbell": (
        "rings although nobody is at the door",
        "sends its pictures half a minute too late",
        "takes no picture when it is dark outside",
        "has an empty battery after two days",
        "does not ring in the attic",
        "films the street instead of my gate",
        "drops out of the Wi-Fi in the rain",
    ),
    "Pelliq pitcher": (
        "drips from the lid when I pour",
        "lets the water through very slowly",
        "gives the water a taste of plastic",
        "asks for a new filter after one week",
        "has a crack along the handle",
        "does not fit into the door of my fridge",
        "leaves black grains in the glass",
    ),
    "Solvane lamp": (
        "wakes me an hour too late",
        "flickers at the lowest brightness",
        "plays the radio at full volume",
        "does not get any brighter than a candle",
        "has lost the time since the clocks were changed",
        "smells warm after half an hour",
        "cannot be switched off by its button",
    ),
    "Inkrow notebook": (
        "keeps a ghost of the last page on the screen",
        "does not recognise my handwriting",
        "has not synchronised since Monday",
        "charges only when it lies upside down",
        "puts my notes into the wrong folder",
        "draws lines beside the tip of the pen",
        "takes a minute to open a long document",
    ),
}
_FRAMES = (
    "My {product} {trouble}. What can I do?",
    "Since the last update my {product} {trouble}. Is this a known fault?",
    "I bought this {product} two weeks ago and it {trouble}. Can I send it back?",
    "Could you tell me why the {product} {trouble}?",
    "A customer says that her {product} {trouble}. What should I answer first?",
    "My {product} {trouble}, and the manual says nothing about it. Which setting should I look at?",
)
_WISHES = (
    "change the delivery address of",
    "get an invoice with my company's name for",
    "pay in three parts for",
    "extend the warranty of",
    "use the discount of the Quill Club for",
    "register Quill Care for",
    "order spare parts for",
    "get a second user into the app of",
    "cancel the order of",
    "find the serial number of",
    "update the software of",
    "delete all my data from",
)
_ASKING = (
    "How do I {wish} my {product}?",
    "Is it possible to {wish} my {product}, and what does it cost?",
    "What do you need from me so that I can {wish} my {product}?",
    "How long does it take to {wish} my {product}?",
    "Whom do I have to ask if I want to {wish} my {product}?",
)


def training_prompts() -> list[str]:
    """1,000 prompts, each once: those that were written by hand, and templates. Any first n are a fair sample."""
    held_out = set(held_out_prompts())
    every = [prompt for prompt in dict.fromkeys([*_of(_WRITTEN), *_of_templates()]) if prompt not in held_out]
    return sorted(_first(every, 1000), key=_lot)


def held_out_prompts() -> list[str]:
    """Prompts that nobody trains on, all written by hand, in the order of the files."""
    return list(dict.fromkeys(_of(_HELD_OUT)))


def _of(files: tuple[str, ...]) -> list[str]:
    """Those prompts that are one question, without a system prompt or earlier turns."""
    rows = [json.loads(line) for name in files for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [str(row.get("prompt") or row["question"]) for row in rows if "messages" not in row]


def _of_templates() -> list[str]:
    troubles = [
        frame.format(product=product, trouble=trouble)
        for (product, known), frame in each_with_each(_TROUBLES.items(), _FRAMES)
        for trouble in known
    ]
    wishes = [
        frame.format(product=product, wish=wish) for product, wish, frame in each_with_each(_TROUBLES, _WISHES, _ASKING)
    ]
    return sorted([*troubles, *wishes], key=_lot)


def _first(prompts: list[str], count: int) -> list[str]:
    if len(prompts) < count:
        raise ValueError(f"there are {len(prompts)} prompts, not {count}: add templates")
    return prompts[:count]


def _lot(prompt: str) -> bytes:
    """In the order of their digests prompts are as good as drawn by lot, everywhere alike."""
    return hashlib.sha256(prompt.encode()).digest()
