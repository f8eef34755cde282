"""Teachers: the models whose answers are learned, and how each is reached."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Model, ObjectName, Seconds, Text, Uri, Word
from kubedistill_api.rules import Rule
from kubedistill_api.uris import MODEL_SCHEMES, cel_scheme_is, scheme_is

OWNED_VLLM_FLAGS = (
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--api-key",
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--data-parallel-size",
    "--enable-expert-parallel",
    "--max-model-len",
    "--max-logprobs",
    "--revision",
    "--generation-config",
)
"""Flags of vLLM that are written from the spec's own fields, or that would change how the teacher samples."""


ANSWERS_OF_A_PART = 4
"""Answers of the longest kind that the tokens of a minute must hold for each pod."""


class ModelRef(Model):
    """A model's weights, tokenizer and configuration, at one revision."""

    rules: ClassVar = (
        Rule(
            cel=cel_scheme_is("self.uri", MODEL_SCHEMES),
            message="a model's URI begins with hf://, s3://, pvc:// or file:// (gs:// and abfs:// are not built yet)",
            holds=lambda model: scheme_is(model.uri, MODEL_SCHEMES),
            field="uri",
        ),
    )

    uri: Uri
    """`hf://owner/name`, `s3://bucket/prefix`, `pvc://claim/path` or `file:///path` (a folder in the image or of the
    local machine)."""
    revision: Word = ""
    """Of a hub model: a commit, tag or branch; Prepare pins it to a commit."""


class Parallelism(Model):
    """How vLLM spreads one replica over its GPUs."""

    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that share each layer."""
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    """Groups of GPUs that each hold some of the layers."""
    data: Annotated[int, Field(ge=1, le=64)] = 1
    """Copies of the model inside one replica."""
    expert: bool = False
    """Spread the experts of a mixture-of-experts model instead of splitting each."""


class Serving(Model):
    """A vLLM Deployment that lives as long as the generation needs it."""

    rules: ClassVar = (
        Rule(
            cel="self.nodes == 1",
            message="a teacher over several nodes is not built yet: write nodes: 1",
            holds=lambda serving: serving.nodes == 1,
            field="nodes",
        ),
        Rule(
            cel="self.gpusPerNode == 0 || self.parallelism.tensor * self.parallelism.pipeline * "
            "self.parallelism.data == self.nodes * self.gpusPerNode",
            message="parallelism.tensor x pipeline x data must equal nodes x gpusPerNode: every GPU asked for is used",
            holds=lambda serving: (
                serving.gpus_per_node == 0
                or serving.parallelism.tensor * serving.parallelism.pipeline * serving.parallelism.data
                == serving.nodes * serving.gpus_per_node
            ),
            field="parallelism",
        ),
        Rule(
            cel="self.extraArgs.all(arg, !arg.matches('^(" + "|".join(OWNED_VLLM_FLAGS) + ")(=.*)?$'))",
            message="extraArgs holds a flag that is written from the spec: use model, parallelism, maxModelLen and "
            "generation.topK instead",
            holds=lambda serving: not any(arg.split("=", 1)[0] in OWNED_VLLM_FLAGS for arg in serving.extra_args),
            field="extraArgs",
        ),
    )

    image: Text = ""
    """The vLLM image; empty: the operator's default."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Servers behind one Service."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Nodes that one server spans."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs of each node; 0: a vLLM built for CPUs."""
    parallelism: Parallelism = Parallelism()
    """Its product is the number of GPUs."""
    max_model_len: Annotated[int, Field(ge=16, le=2**24)] | None = None
    """Tokens of prompt and answer together that the server takes; absent: what the model allows."""
    extra_args: Annotated[list[Text], Field(max_length=64)] = []
    """More flags for vLLM, such as `--kv-cache-dtype=fp8`; what the spec's own fields say is refused here."""
    startup_timeout_seconds: Seconds = 3600
    """The teacher must have answered a completion after so long, or the attempt fails."""
    idle_timeout_seconds: Seconds = 600
    """A generation that moved nothing for so long is stopped, and its GPUs are freed."""


class SecretKey(Model):
    """One key of a Secret in the job's namespace. The kubelet mounts it; the operator never reads it."""

    name: ObjectName
    """The Secret."""
    key: ObjectName
    """The key whose value is the token."""


class External(Model):
    """A server that exists already and speaks the OpenAI API."""

    rules: ClassVar = (
        Rule(
            cel="self.url.matches('^https?://')",
            message="url must begin with https:// or http:// and end before /chat/completions, for example "
            "https://teacher.example/v1",
            holds=lambda external: external.url.startswith(("http://", "https://")),
            field="url",
        ),
        Rule(
            cel="self.termsAccepted",
            message="write termsAccepted: true once you have read that the provider's terms allow training on its "
            "answers; the model card will say so",
            holds=lambda external: external.terms_accepted,
            field="termsAccepted",
        ),
    )

    url: Uri
    """The base URL, as an OpenAI client takes it (`…/v1`)."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """The model's name at that server."""
    credentials_secret: SecretKey | None = None
    """The API key; absent: the server asks for none."""
    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests under way at once, over all pods."""
    requests_per_minute: Annotated[int, Field(ge=1, le=10**7)] | None = None
    """The provider's limit, kept by all pods together; absent: none."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=10**10)] | None = None
    """The provider's limit over prompt and answer, kept by all pods together; absent: none. Before a request its tokens
    are estimated, with `generation.maxTokens` for the answer; the answer's own usage corrects that."""
    terms_accepted: bool = False
    """You say that the provider's terms allow this use."""


class BatchEngine(StrEnum):
    """The engine a Generate pod holds in its own process."""

    TRANSFORMERS = "Transformers"
    VLLM = "VLLM"


class Batch(Model):
    """No server: the Generate pods load the teacher themselves."""

    engine: BatchEngine = BatchEngine.TRANSFORMERS
    """What runs the model. VLLM needs the installation's image with vLLM in it (`trainerVllm.image` of the chart)."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs of each Generate pod; 0: CPU. With VLLM they share each layer, so they must divide the attention heads."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Prompts that are answered together. VLLM on a large GPU bears hundreds."""
    precision: Annotated[str, Field(pattern="^(BF16|FP16|FP32)$")] = "BF16"
    """The number format of the weights while answering."""


class Teacher(Model):
    """One teacher: a model and the one way to reach it."""

    rules: ClassVar = (
        Rule(
            cel="(has(self.serving) ? 1 : 0) + (has(self.external) ? 1 : 0) + (has(self.batch) ? 1 : 0) == 1",
            message="write exactly one of serving (a vLLM of its own), external (a server you have) or batch (inside "
            "the Generate pods)",
            holds=lambda teacher: sum(x is not None for x in (teacher.serving, teacher.external, teacher.batch)) == 1,
        ),
        Rule(
            cel="has(self.external) || has(self.model)",
            message="a teacher with serving or batch needs its weights: write model.uri",
            holds=lambda teacher: teacher.external is not None or teacher.model is not None,
            field="model",
        ),
    )

    name: Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """A short name, unique in the list."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """This teacher's share of the prompts, relative to the others' weights."""
    model: ModelRef | None = None
    """The weights. With `external` only the tokenizer is read from here, and only for `signal: TopK`."""
    serving: Serving | None = None
    """A vLLM Deployment made for this job."""
    external: External | None = None
    """A server that exists already."""
    batch: Batch | None = None
    """An engine inside the Generate pods."""

    def workers(self, wanted: int, max_tokens: int) -> int:
        """Pods that can ask at once, of those wanted: each needs a part of an external teacher's limits that a few of
        the longest answers fit into, or each would ask once a minute. Prompts are not known here.
        """
        if self.external is None:
            return wanted
        requests, tokens = self.external.requests_per_minute, self.external.tokens_per_minute
        room = (
            self.external.max_concurrency,
            requests or wanted,
            tokens // (ANSWERS_OF_A_PART * max_tokens) if tokens else wanted,
        )
        return max(1, min(wanted, *room))
