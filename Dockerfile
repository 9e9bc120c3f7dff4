# docker build -t luxfuse .
# mkdir -p /srv/luxfuse/bucket
# docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined \
#     -v /srv/luxfuse:/srv/luxfuse:rshared -v luxfuse-cache:/var/cache/luxfuse \
#     -e AWS_ACCESS_KEY_ID -e AWS_SECRET_ACCESS_KEY luxfuse s3://bucket /srv/luxfuse/bucket --allow-other
FROM debian:12-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc libc6-dev libcurl4-openssl-dev libfuse3-dev libssl-dev libxxhash-dev pkg-config python3 python3-dev \
        python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/luxfuse
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY luxfuse ./luxfuse
RUN /opt/luxfuse/bin/pip install --no-cache-dir ".[azure,gcs]"

FROM debian:12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fuse3 libcurl4 libfuse3-3 python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/luxfuse /opt/luxfuse
RUN ln -s /opt/luxfuse/bin/luxfuse /usr/local/bin/luxfuse \
    && ln -s /opt/luxfuse/bin/mount.luxfuse /sbin/mount.fuse.luxfuse
# What was promised and not uploaded yet, and the cache: one is not to be kept without the other.
ENV LUXFUSE_STATE_DIR=/var/cache/luxfuse/state
VOLUME /var/cache/luxfuse
STOPSIGNAL SIGTERM
ENTRYPOINT ["luxfuse", "mount", "--foreground"]
