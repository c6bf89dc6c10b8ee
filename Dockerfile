# igpt for CPUs: `docker build -t igpt .`, then `docker run --rm -v "$PWD:/work" igpt` shows the demo.
FROM python:3.11-slim

# The compiler makes drawing several times as fast; without this step everything works, slower.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch's build for CPUs alone comes from an index that pytorch.org names (Linux, Pip, CPU):
# `--build-arg TORCH_INDEX=ADDRESS`. Without it the image holds gigabytes for NVIDIA's cards.
ARG TORCH_INDEX=
WORKDIR /igpt
COPY requirements-*.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-base.lock \
    && { pip install --no-cache-dir --require-hashes --no-deps -r requirements-torch-cpu.lock \
           ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
         || pip install --no-cache-dir --require-hashes \
              -r requirements-base.lock -r requirements-torch.lock; }
COPY pyproject.toml README.md LICENSE ./
COPY igpt igpt
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Whoever runs it, also a user that the image does not know, may keep things in a folder of their own.
RUN useradd --create-home igpt && mkdir /work && chown igpt /work
USER igpt
RUN igpt info --build
WORKDIR /work
ENTRYPOINT ["igpt"]
CMD ["demo"]
