"""A teacher inside this process: vLLM's engine, stepped here, without a server.

Requests join at every step, so no answer waits for another. The scores of a token come with it, from the very logits
it was drawn from: there is no second request, and no JSON between. vLLM is imported by this module alone.

The engine's core runs in this process too (VLLM_ENABLE_V1_MULTIPROCESSING=0): what it raises says why it cannot run.
From a core in a process of its own comes only "initialization failed". The ranks of several GPUs are still processes.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kubedistill_api.teachers import Batch
from kubedistill_trainer.errors import BadConfiguration, DeviceOutOfMemory, NotFound, StageError
from kubedistill_trainer.models import end_ids, load_tokenizer
from kubedistill_trainer.teachers.logprobs import signal_of_flat
from kubedistill_trainer.teachers.protocol import Answered, Failed, Outcome, Request, Sampling, Work, prompt_of

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, a port and a handler of its own
}
"""Where the pod's environment does not say otherwise."""

CPU_CACHE_BYTES = 2 * 2**30
"""Keys and values on a CPU. vLLM's own default is a share of the whole machine's memory, whatever the pod may have.
VLLM_CPU_KVCACHE_SPACE, in GiB, wins."""

DTYPES = {"BF16": "bfloat16", "FP16": "float16", "FP32": "float32"}

NEVER = -100.0
"""The least bias that vLLM takes. Scores are read before it is added."""

FULL = ("out of memory", "no available memory", "cannot auto-fit", "less than desired", "larger than the available kv")
"""What vLLM says in many words where the weights or one sequence do not fit."""


class VllmTeacher:
    """See the module. `batch_size` answers are under way at once."""

    def __init__(self, engine: Any, tokenizer: Any, ends: Sequence[int], sampling: Sampling, batch_size: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self.ends = tuple(ends)
        self._sampling = sampling
        self._batch_size = batch_size
        self._context = int(engine.model_config.max_model_len)
        padding = range(len(tokenizer), engine.model_config.get_vocab_size())
        self._never = dict.fromkeys(padding, NEVER)
        """Rows that pad the vocabulary are no tokens, and vLLM draws them like any other."""

    @staticmethod
    def load(path: Path, batch: Batch, sampling: Sampling) -> VllmTeacher:
        """Load a model's folder onto `batch.gpus` GPUs, which share each layer; 0: a vLLM built for CPUs.

        Raises:
            BadConfiguration: as `check_vllm`, or vLLM does not take this model.
            DeviceOutOfMemory: the weights, or one sequence beside them, do not fit.
            NotFound: the folder holds no weights that can be read.
        """
        check_vllm(batch.gpus)
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        tokenizer = load_tokenizer(path)
        try:
            arguments = EngineArgs(**engine_arguments(path, batch, sampling))
            engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:
            failure = failure_of(error, batch)
            if failure is None:
                raise
            raise failure from error
        return VllmTeacher(engine, tokenizer, end_ids(tokenizer, path), sampling, batch.batch_size)

    def answer(self, work: Work, stopping: threading.Event) -> None:
        """See `protocol.Teacher`."""
        under_way: dict[str, Request] = {}
        while not stopping.is_set():
            self._refill(work, under_way)
            if not under_way:
                return
            for output in self._engine.step():
                if output.finished:
                    work.give(under_way.pop(output.request_id), self._outcome(output.outputs[0]))
        self._engine.abort_request(list(under_way))

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def _refill(self, work: Work, under_way: dict[str, Request]) -> None:
        """Let new requests join. A prompt that cannot be asked is given back at once."""
        while len(under_way) < self._batch_size and (requests := work.take(self._batch_size - len(under_way))):
            for request in requests:
                prompt = prompt_of(self._tokenizer, request, self._context)
                if isinstance(prompt, Failed):
                    work.give(request, prompt)
                    continue
                room = min(self._sampling.max_tokens, self._context - len(prompt))
                self._engine.add_request(
                    request.key, {"type": "token", "prompt_token_ids": prompt}, self._parameters(request, room)
                )
                under_way[request.key] = request

    def _parameters(self, request: Request, room: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=request.seed % 2**31,
            max_tokens=room,
            stop_token_ids=list(self.ends),
            logit_bias=self._never or None,
            logprobs=self._sampling.k or None,
            flat_logprobs=self._sampling.k > 0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _outcome(self, output: Any) -> Outcome:
        """One finished `CompletionOutput`."""
        if output.finish_reason not in ("stop", "length"):
            return Failed(f"vLLM ended the answer: {output.finish_reason}")
        tokens, complete = list(output.token_ids), output.finish_reason == "stop"
        scores, k = output.logprobs, self._sampling.k
        return Answered(
            text=self._tokenizer.decode(tokens[:-1] if complete else tokens, skip_special_tokens=True),
            complete=complete,
            token_ids=tuple(tokens),
            signal=signal_of_flat(scores.token_ids, scores.logprobs, tokens, k, len(self._tokenizer)) if k else None,
            tokens=len(tokens),
        )


def check_vllm(gpus: int) -> None:
    """Make vLLM ready to be imported, and look whether it can run on so many GPUs; no model is needed for that.

    Raises:
        BadConfiguration: it is not here, is built for other devices, or sees fewer of them.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # noqa: F401 - whether it can be imported is the question
    except ImportError as error:
        raise BadConfiguration(
            "VllmMissing",
            f"batch.engine: VLLM needs vLLM beside the trainer ({error}): on a cluster an image built by "
            "trainer-image/vllm.Dockerfile, named in the chart's trainerVllm.image; here a vLLM in the same Python.",
        ) from error
    import torch
    from vllm.platforms import current_platform

    if differing := devices_differing(gpus, on_cpus=current_platform.is_cpu(), seen=torch.cuda.device_count()):
        raise differing


def devices_differing(gpus: int, *, on_cpus: bool, seen: int) -> BadConfiguration | None:
    """What to say where a spec asks for `gpus` of a vLLM that is built for CPUs, or sees so many GPUs."""
    if gpus == 0 and not on_cpus:
        words = "batch.gpus is 0, but this vLLM is not built for CPUs: write gpus: 1, or more."
    elif gpus > 0 and on_cpus:
        words = f"batch.gpus is {gpus}, but this vLLM is built for CPUs: write gpus: 0, or change the image."
    elif gpus > seen:
        words = f"batch.gpus is {gpus}, but {seen} are seen here: write that many."
    else:
        return None
    return BadConfiguration("DevicesDiffer", words)


def engine_arguments(path: Path, batch: Batch, sampling: Sampling) -> dict[str, Any]:
    """vLLM's `EngineArgs` for a teacher."""
    arguments: dict[str, Any] = {
        "model": str(path),
        "dtype": DTYPES[batch.precision],
        "tensor_parallel_size": max(1, batch.gpus),
        "max_num_seqs": batch.batch_size,
        # What the model allows, or as much of it as the device's memory holds.
        "max_model_len": -1,
        "max_logprobs": max(1, sampling.k),
        # Temperature 1, before top-p: what the losses are defined on.
        "logprobs_mode": "raw_logprobs",
        # Else the model's generation_config.json adds a top-k, min-p or repetition penalty that the spec does not name,
        # and the sampled tail is biased.
        "generation_config": "vllm",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if batch.gpus == 0:
        # To compile takes minutes there. And a prompt that is read in parts ends the engine of a seeded request: "CPU
        # Generator does not use offset".
        arguments |= {"enforce_eager": True, "enable_chunked_prefill": False, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
    return arguments


def failure_of(error: Exception, batch: Batch) -> StageError | None:
    """What to say of an engine that did not start; None: nothing better than the error itself."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    if type(error).__name__ == "OutOfMemoryError" or any(words in str(error).lower() for words in FULL):
        where = f"{batch.gpus} GPUs" if batch.gpus > 1 else "the GPU" if batch.gpus else "the memory"
        more = "batch.gpus" if batch.gpus else "the memory of stage Generate"
        return DeviceOutOfMemory(
            "DeviceOutOfMemory", f"The teacher does not fit {where}: raise {more}, or use a smaller precision ({text})."
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return None  # the stage knows what to say of a full disk
    if isinstance(error, OSError) or "any model weights" in text:
        return NotFound("ModelUnreadable", f"vLLM cannot read the teacher: {text}.")
    if isinstance(error, ValueError | NotImplementedError):
        return BadConfiguration(
            "TeacherUnsupported", f"vLLM does not take this teacher: write engine: Transformers, or change it ({text})."
        )
    return None
