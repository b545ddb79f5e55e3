# The one image of every component. Build it, push it, and name it when compiling:
#   docker build -t REGISTRY/lockstep:0.1.0 . && docker push REGISTRY/lockstep:0.1.0
#   lockstep compile --config FILE --image REGISTRY/lockstep:0.1.0
# Any step alone:  docker run -v $PWD:/data REGISTRY/lockstep:0.1.0 python -m components embed_queries --help
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /lockstep

RUN pip install --no-cache-dir uv==0.13.9
COPY requirements.lock ./
RUN uv pip sync --system --no-cache --compile-bytecode requirements.lock
COPY setup.py pyproject.toml README.md LICENSE ./
COPY lockstep lockstep
COPY dataflow dataflow
COPY trainer trainer
COPY serving serving
COPY components components
COPY pipelines pipelines
COPY configs configs
RUN uv pip install --system --no-cache --no-deps .

RUN useradd --create-home lockstep
USER lockstep
WORKDIR /data
CMD ["lockstep", "--help"]
