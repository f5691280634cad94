# nphm-track on a CPU. It needs no network when it runs, and no compiler when it is built.
#   docker build -t nphm-track .
#   docker run --rm --network none --entrypoint sh nphm-track examples/demo.sh /tmp/demo
#   docker run --rm --user $(id -u):$(id -g) -v "$PWD:/work" -w /work nphm-track clip.mp4
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 OMP_WAIT_POLICY=passive HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /opt/nphm-track
COPY . .
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu .

USER nobody
ENTRYPOINT ["nphm-track"]
