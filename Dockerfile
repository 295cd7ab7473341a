# The image that vitlab.launch names: docker build --build-arg EXTRA=tpu,cloud --tag REGISTRY/vitlab .
# EXTRA: tpu, cuda12 or cuda13, with cloud where the run folder is a bucket. Everything comes from the
# package registry that pip is told of.
FROM python:3.12-slim
ARG EXTRA=tpu,cloud
WORKDIR /opt/vitlab
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY configs configs
COPY pallas_kernels pallas_kernels
COPY vitlab vitlab
RUN pip install --no-cache-dir ".[${EXTRA}]"
# Recipes are named vitlab:NAME; files of your own lie in the folder that is mounted here.
WORKDIR /work
# exec: SIGTERM reaches the run, which saves and exits with 42.
ENTRYPOINT []
CMD ["python", "-m", "vitlab"]
