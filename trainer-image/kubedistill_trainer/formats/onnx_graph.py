"""A model as an ONNX graph with a key-value cache, by torch's own exporter, and the same graph run.

Names and shapes follow Optimum's, which other runtimes read, too:

    input_ids, position_ids   [batch, sequence]
    attention_mask            [batch, past_sequence + sequence], 0 where a prompt is padded, on the left
    past_key_values.<i>.key   [batch, heads, past_sequence, channels], and .value; past_sequence may be 0
    logits                    [batch, sequence, vocabulary]
    present.<i>.key, .value   the cache with the new positions, to be given back as past_key_values

Numbers are float32: ONNX Runtime has no bfloat16 on CPUs. Weights are beside the graph, which protobuf bounds to 2 GB.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kubedistill_trainer.core.pruning import prune
from kubedistill_trainer.formats.parity import EXACT, NotTheModel, Parity, check, compare
from kubedistill_trainer.models import WEIGHT_SUFFIXES, load_model

GRAPH = "model.onnx"
WEIGHTS = "model.onnx_data"
_PARTS = ("key", "value")


class Feed(NamedTuple):
    """What goes into the graph at once."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    positions: NDArray[np.int64]
    past: list[NDArray[np.float32]]


def objection(config: Any) -> str:
    """Why a model of this configuration cannot be written as ONNX; empty if it can.

    Two of its layers are exported without weights: the exporter meets every operation that the whole model has.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32)
    try:
        _export(prune(model, range(min(2, config.num_hidden_layers))).eval(), optimize=False)
    except (torch.onnx.OnnxExporterError, NotTheModel) as error:
        return f"torch cannot export a {config.model_type!r}: {_cause(error)}"
    return ""


def write(model: Path, target: Path) -> None:
    """Write the model of a folder to another, with all that it needs beside the graph. The same folder gives the same
    bytes. Takes the memory of the model in float32.

    Raises:
        NotTheModel: torch cannot export it.
    """
    try:
        graph = _export(load_model(model, torch.float32))
    except torch.onnx.OnnxExporterError as error:
        raise NotTheModel(f"torch cannot export it: {_cause(error)}") from error
    target.mkdir(parents=True)
    onnx_ir.save(_anonymous(graph), target / GRAPH, external_data=WEIGHTS)
    for file in sorted(model.iterdir()):
        if file.is_file() and not file.name.endswith((*WEIGHT_SUFFIXES, ".index.json", ".md")):
            shutil.copyfile(file, target / file.name)


def verify(model: Path, folder: Path, texts: Sequence[Sequence[int]]) -> Parity:
    """Run a graph in ONNX Runtime and hold its logits against the model's.

    Each text (token ids) at once; and again beside a longer one, so that it is padded, in two steps, so that the cache
    is used. Takes the memory of the model in float32 almost three times: ONNX Runtime copies what it optimises.

    Raises:
        NotTheModel: the graph does not load, or its logits differ.
    """
    with torch.no_grad():
        ours = list(_logits(load_model(model, torch.float32), texts))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")  # it keeps every matrix a second time
    try:
        session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class below Exception
        raise NotTheModel(f"ONNX Runtime does not load it: {' '.join(str(error).split())[:300]}") from error
    parity = compare([*ours, *ours], _answers(session, texts))
    check(parity, EXACT)
    return parity


def _cause(error: Exception) -> str:
    """In one line: what torch says about how it tried is long."""
    cause = error if isinstance(error, NotTheModel) else error.__cause__ or error
    return " ".join(str(cause).split())[:300]


class _Graph(nn.Module):
    """A model whose cache goes in and comes out as plain tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> Any:
        from transformers import DynamicCache

        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(list(zip(past[::2], past[1::2], strict=True))),
            use_cache=True,
        )
        return out.logits, *_tensors(out.past_key_values)


def _export(model: Any, *, optimize: bool = True) -> onnx_ir.Model:
    """Constants are not there to be folded where the weights are not."""
    device = model.device
    with torch.no_grad():
        ids = torch.zeros(2, 3, dtype=torch.long, device=device)
        cache = _tensors(getattr(model(input_ids=ids, use_cache=True), "past_key_values", None))
    length = cache[0].shape[2]
    arguments = (ids, torch.ones(2, length + 3, dtype=torch.long, device=device), ids + length, cache)
    names = [f"{index}.{part}" for index in range(len(cache) // 2) for part in _PARTS]
    token = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself, and that the names of axes are names only
        program = torch.onnx.export(
            _Graph(model).eval(),
            arguments,
            dynamo=True,
            dynamic_shapes=(
                token,
                {0: "batch", 1: "total_sequence"},
                token,
                [{0: "batch", 2: "past_sequence"}] * len(cache),
            ),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program.model


def _tensors(cache: Any) -> list[Tensor]:
    """Keys and values of every layer, [batch, heads, positions, channels]."""
    try:
        return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    except AttributeError as error:
        raise NotTheModel("its cache is not one of keys and values") from error


def _anonymous(graph: onnx_ir.Model) -> onnx_ir.Model:
    """Without the exporter's notes, which hold paths of this machine and differ from run to run."""
    for part in (graph.graph, *graph.functions.values()):
        part.metadata_props.clear()
        part.doc_string = None
        for node in part.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*part.inputs, *getattr(part, "initializers", {}).values()):
            value.metadata_props.clear()
    graph.metadata_props.clear()
    return graph


def _logits(model: Any, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    for ids in texts:
        yield model(torch.tensor([ids]), use_cache=False).logits[0]


def _answers(session: Any, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    for ids in texts:
        logits, _ = _step(session, _feed([ids], _empty(session, 1)))
        yield logits[0]
    longest = max(texts, key=len)
    for ids in texts:
        both = _feed([ids, longest], _empty(session, 2))
        half = both.ids.shape[1] // 2
        before, after = np.s_[:, :half], np.s_[:, half:]
        first, past = _step(session, Feed(both.ids[before], both.mask[before], both.positions[before], both.past))
        rest, _ = _step(session, Feed(both.ids[after], both.mask, both.positions[after], past))
        yield torch.cat((first[0], rest[0]))[-len(ids) :]


def _empty(session: Any, batch: int) -> list[NDArray[np.float32]]:
    """A cache without positions."""
    shapes = [one.shape for one in session.get_inputs() if one.name.startswith("past_key_values.")]
    return [np.zeros((batch, heads, 0, channels), np.float32) for _, heads, _, channels in shapes]


def _feed(texts: Sequence[Sequence[int]], past: list[NDArray[np.float32]]) -> Feed:
    """Texts as a batch, padded on the left."""
    length = max(map(len, texts))
    ids = np.array([[0] * (length - len(text)) + list(text) for text in texts], np.int64)
    mask = np.array([[0] * (length - len(text)) + [1] * len(text) for text in texts], np.int64)
    return Feed(ids, mask, (mask.cumsum(-1) - 1).clip(0), past)


def _step(session: Any, feed: Feed) -> tuple[Tensor, list[NDArray[np.float32]]]:
    """Logits [batch, sequence, vocabulary] and the cache."""
    names = [one.name for one in session.get_inputs()]
    past = dict(zip([name for name in names if name.startswith("past_key_values.")], feed.past, strict=True))
    given = {"input_ids": feed.ids, "attention_mask": feed.mask, "position_ids": feed.positions, **past}
    try:
        logits, *cache = session.run(None, given)
    except Exception as error:  # its errors have no common class below Exception
        raise NotTheModel(f"ONNX Runtime does not run it: {' '.join(str(error).split())[:300]}") from error
    return torch.from_numpy(logits), cache
