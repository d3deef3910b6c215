# syntax=docker/dockerfile:1.10
# MOPD on NVIDIA GPUs, x86-64. How to build, run, test and import into enroot: docs/images.md.
#   docker build -t mopd .                          the image
#   docker build -t mopd-test --target test .       the same with the test tools; building it runs the tests
#
# Base: CUDA 13.0, which torch's wheels are built for, with its compiler: FlashInfer and Triton build kernels on first use.
# Pinned by tag; for a digest, build with --build-arg BASE=nvidia/cuda@sha256:...
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04

# ---------------------------------------------------------------- what changes seldom: system and packages
FROM ${BASE} AS packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Versions follow the base's Ubuntu, whose archive keeps no older ones: the base's tag decides them.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    if [[ $(uname -m) != x86_64 ]]; then echo "This is $(uname -m). On Arm build Dockerfile.gh200." >&2; exit 1; fi \
    && rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ gcc git ibverbs-providers libibverbs1 libnuma1 ninja-build python3 python3-dev python3-venv

# Every script takes the active Python when it has all pins, and a GPU's packages need no GPU at this moment.
ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    MOPD_DEVICE=cuda \
    PYTHONUNBUFFERED=1 \
    UV_LINK_MODE=copy
ARG UV_VERSION=0.13.8
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv "$VIRTUAL_ENV" \
    && pip install --disable-pip-version-check "uv==$UV_VERSION"

WORKDIR /opt/mopd
COPY requirements.txt requirements-cuda.txt requirements-trackers.txt requirements-analysis.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --compile-bytecode -r requirements-cuda.txt -r requirements-trackers.txt -r requirements-analysis.txt

# Not root, and not 1000, which Ubuntu's image gives to its own account.
RUN useradd --uid 10001 --create-home --shell /bin/bash mopd \
    && install --directory --owner=mopd --mode=1777 /work

# ---------------------------------------------------------------- what changes often: the project
FROM packages AS source
COPY . .
RUN uv pip install --no-deps --no-build-isolation -e . \
    && python trainer/pins.py . "$MOPD_DEVICE" trackers analysis

# ---------------------------------------------------------------- the check: docker build --target test .
FROM source AS test
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --compile-bytecode -r requirements-dev.txt -r requirements-cuda.txt \
    && install --directory --owner=mopd .hypothesis .pytest_cache
USER 10001
# While an image is built there is no GPU, and vLLM for GPUs starts on none: what starts the whole stack is left to
# `docker run --gpus all mopd-test`.
RUN bash run_tests.sh -m 'not e2e and not slow and not cluster'
CMD ["bash", "run_tests.sh"]

# ---------------------------------------------------------------- the image
FROM source AS mopd
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mopd" \
    org.opencontainers.image.description="Multi-rollout on-policy distillation: a trainer on Ray, vLLM and FSDP2" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
USER 10001
# Runs write below the current folder: mount one here, for instance with -v "$PWD:/work".
WORKDIR /work
CMD ["bash", "/opt/mopd/run_local_sdpo.sh", "--help"]
