"""Models and tokenizers from wherever a `ModelRef` says, and what can be known of them without their weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubedistill_api import uris
from kubedistill_api.identity import digest, short
from kubedistill_api.results import PrepareResult
from kubedistill_api.teachers import ModelRef
from kubedistill_trainer.errors import NotFound, Transient
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import Manifest
from kubedistill_trainer.store.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from kubedistill_trainer.runtime import StageContext

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
HUB_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "*.tiktoken")
"""What is read of a hub model; older forms of weights are not."""


def fetch_model(ref: ModelRef, context: StageContext, *, weights: bool = True) -> Path:
    """A local folder with a model's files; `weights=False` leaves the large ones where they are.

    Raises:
        NotFound: no such model, revision or folder, or access to it is refused.
        Transient: the hub or the store cannot be reached.
    """
    location = uris.parse(ref.uri)
    if location.scheme == "hf":
        return _from_hub(f"{location.authority}/{location.path}".rstrip("/"), ref.revision or None, weights)
    store = Workspace.open(ref.uri, context.scratch)
    direct = store.local_path("")
    if direct is not None:
        if not (direct / "config.json").is_file():
            raise NotFound(
                "ModelNotFound", f"There is no model at {ref.uri}: a folder with config.json is expected there."
            )
        return direct
    files = [file.path for file in store.files("") if weights or not file.path.endswith(WEIGHT_SUFFIXES)]
    target = context.scratch / "models" / short(digest([ref.uri, stored_revision(ref.uri), weights]))
    if "config.json" not in files:
        raise NotFound("ModelNotFound", f"There is no model at {ref.uri}: a prefix with config.json is expected there.")
    for path in files:
        if not (target / path).exists():
            partial = target / f"{path}.partial"
            store.fetch(path, partial)
            partial.rename(target / path)
    return target


def stored_revision(uri: str) -> str:
    """What stands for a commit where a model is a folder of files: another digest after any of them was written.

    Raises Transient: its store cannot be reached.
    """
    return digest([[file.path, file.size, file.version] for file in Workspace.open(uri).files("")])


def fetch_pinned(ref: ModelRef, role: str, prepared: str, context: StageContext) -> Path:
    """A local folder with the files of a model at the commit that Prepare found, whatever its branch names by now.

    `role`: `student` or `teacher:<name>`; `prepared`: Prepare's folder. Raises what `fetch_model` raises.
    """
    return fetch_model(pinned(ref, role, manifests.load(context.workspace, prepared)), context)


def pinned(ref: ModelRef, role: str, prepared: Manifest | None) -> ModelRef:
    """A model of the hub with its revision as Prepare's manifest names it; any other as it is."""
    if prepared is None or not isinstance(prepared.result, PrepareResult) or not uris.scheme_is(ref.uri, ("hf",)):
        return ref
    found = next((model for model in prepared.result.models if model.role == role and model.uri == ref.uri), None)
    return ref.model_copy(update={"revision": found.revision}) if found is not None else ref


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a local folder.

    Raises:
        NotFound: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        raise NotFound("TokenizerNotFound", f"No tokenizer can be read from {path}: {text}") from error


def load_model(path: Path, dtype: torch.dtype, device: str = "cpu", quantization: Any = None) -> Any:
    """A causal language model of a local folder, in evaluation mode.

    `quantization` is transformers' configuration of how linear layers are held; None: in `dtype`, as all else. One that
    holds its attention scores back (Gemma 2) computes as its authors wrote it: transformers' default for it,
    "sdpa", leaves the softcap out.

    Raises:
        NotFound: the folder has no weights, or an architecture that transformers does not know.
    """
    from transformers import AutoModelForCausalLM

    held = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, low_cpu_mem_usage=True, **held)
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        raise NotFound("ModelUnreadable", f"The model at {path} cannot be loaded: {text}") from error
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return (model if held else model.to(device)).eval()


def torch_dtype(precision: str) -> torch.dtype:
    """BF16, FP16 or FP32 as torch's type."""
    import torch

    return {"BF16": torch.bfloat16, "FP16": torch.float16, "FP32": torch.float32}[precision]


def at_ease(model: Any) -> Any:
    """The same model, in float32 if its CPU has no instructions for products in the precision of its weights.

    The weights stay what they are. Measured on 1024 x 576 x 1536: an AVX-512 CPU without AVX512-BF16 computes 61
    GFLOP/s in bfloat16 and 292 in float32.
    """
    import torch

    if model.device.type != "cpu":
        return model
    can = torch.cpu.get_capabilities()
    native = {
        torch.bfloat16: can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"),  # "bf16": of Arm
        torch.float16: can.get("avx512_fp16") or can.get("amx_fp16") or can.get("fp16_arith"),
    }
    return model if native.get(model.dtype, True) else model.float()


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of the token-to-id map: equal exactly if the same ids mean the same tokens."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def end_ids(tokenizer: Any, path: Path | None = None) -> list[int]:
    """The tokens that end an answer, the one that the chat template writes after an answer first.

    `path` is a model's folder: what its `generation_config.json` lists is added.
    """
    found = [*_template_end(tokenizer)]
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    for name in ("generation_config.json", "config.json"):
        file = path / name if path is not None else None
        if file is not None and file.is_file():
            listed = json.loads(file.read_text()).get("eos_token_id")
            found += listed if isinstance(listed, list) else [listed] if isinstance(listed, int) else []
    return list(dict.fromkeys(found))


def _template_end(tokenizer: Any) -> list[int]:
    """The special token that the template writes right after an answer, if it writes one.

    It need not be the tokenizer's end of text: some templates end a turn and a text differently, and a student that
    learned the wrong one never stops.
    """
    if not tokenizer.chat_template:
        return []
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    after = str(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition("Hello")[2]
    ids = tokenizer.encode(after, add_special_tokens=False)
    return [ids[0]] if ids and ids[0] in tokenizer.all_special_ids else []


def _from_hub(repository: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [p for p in HUB_PATTERNS if weights or not p.endswith(WEIGHT_SUFFIXES)]
    patterns += [] if weights else ["*.safetensors.index.json"]
    name = f"hf://{repository}"
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise NotFound(
            "ModelGated", f"{name} asks for an accepted licence: accept it, and put HF_TOKEN into spec.credentials."
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound("RevisionNotFound", f"{name} has no revision {revision}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotFound(
            "ModelNotFound", f"There is no model {name}{at}, or it is private: check name and token."
        ) from error
    except LocalEntryNotFoundError as error:
        if os.environ.get("HF_HUB_OFFLINE"):
            raise NotFound("ModelNotFound", f"{name}{at} is not in the cache, and HF_HUB_OFFLINE is set.") from error
        raise Transient("HubUnavailable", f"{name} cannot be downloaded now: the hub does not answer.") from error
    except HfHubHTTPError as error:
        raise Transient("HubUnavailable", f"{name} cannot be downloaded now: {error}") from error
