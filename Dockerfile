# Image of the server, without secrets. See docs/hosting.md.
#   docker build -t restorer .                                   for CPUs
#   docker build -t restorer --build-arg TORCH_BACKEND= .        with CUDA, which PyTorch on PyPI includes
#   docker build -t restorer --build-arg WEIGHTS="GFPGANv1.3 yunet" .
FROM python:3.12-slim

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# PyTorch build as uv names it: cpu, cu130, ...; empty: the build on PyPI
ARG TORCH_BACKEND=cpu
# OpenCV needs libgl1 and libglib2.0-0, Triton a C compiler; tini reaps child processes and forwards signals
# hadolint ignore=DL3008,SC2046
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 tini \
        $([ "${TORCH_BACKEND}" = cpu ] || echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home restorer \
    && install --directory --owner restorer /data

WORKDIR /app
COPY requirements.txt requirements.lock ./
RUN pip install --no-cache-dir "uv>=0.9,<1" \
    && uv venv /opt/venv \
    && uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python ${TORCH_BACKEND:+--torch-backend ${TORCH_BACKEND}} \
        -r requirements.txt -c requirements.lock

COPY app.py evaluate.py ./
COPY restorer restorer
COPY weights weights
COPY assets assets

# Models to include by name; a new volume starts with them. Others are downloaded on first use
ARG WEIGHTS=""
RUN if [ -n "${WEIGHTS}" ]; then /opt/venv/bin/python -m restorer models --weights-dir /data/weights --fetch ${WEIGHTS}; fi \
    && chown --recursive restorer /data

# The server writes only below /data and /tmp; the rest may be read-only
ENV HOST=0.0.0.0 \
    PORT=7860 \
    UPLOAD_FOLDER=/data/uploads \
    PROCESSED_FOLDER=/data/results \
    RESTORER_WEIGHTS=/data/weights \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7860
USER 1000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/opt/venv/bin/python", "-c", \
    "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health')"]
ENTRYPOINT ["tini", "--"]
CMD ["/opt/venv/bin/python", "app.py"]
