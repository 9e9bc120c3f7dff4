# docker build -t luxfuse .
#
# As root: with FUSE passthrough, where the kernel has it.
#   mkdir -p /srv/luxfuse/bucket
#   docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined --stop-timeout 120 \
#       -v /srv/luxfuse:/srv/luxfuse:rshared -v luxfuse:/var/cache/luxfuse \
#       -e AWS_ACCESS_KEY_ID -e AWS_SECRET_ACCESS_KEY luxfuse s3://bucket /srv/luxfuse/bucket --allow-other
#
# As another user, who owns /srv/luxfuse/bucket: add --user luxfuse (or any id, with a volume of its own).
# luxfuse/docs/CONTAINERS.md says what needs which privilege.
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
# Which stores and services besides S3, HTTP and local ones: see [project.optional-dependencies] in pyproject.toml.
ARG EXTRAS=azure,gcs,csi
# botocore describes four hundred services, of which these are used; tests and pip are of no use in an image.
RUN /opt/luxfuse/bin/pip install --no-cache-dir ".[$EXTRAS]" \
    && cd /opt/luxfuse/lib/python3*/site-packages \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sso ! -name sso-oidc ! -name sts ! -name signin -exec rm -r {} + \
    && find . -type d \( -name tests -o -name test \) -prune -exec rm -r {} + \
    && /opt/luxfuse/bin/pip uninstall --yes setuptools pip

FROM debian:12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fuse3 libcurl4 libfuse3-3 python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb \
    && echo user_allow_other >> /etc/fuse.conf \
    && useradd --uid 1000 --no-create-home --home-dir /var/cache/luxfuse luxfuse \
    && install -d -o luxfuse -m 0700 /var/cache/luxfuse
COPY --from=build /opt/luxfuse /opt/luxfuse
RUN ln -s /opt/luxfuse/bin/luxfuse /usr/local/bin/luxfuse \
    && ln -s /opt/luxfuse/bin/mount.luxfuse /sbin/mount.fuse.luxfuse
# What was promised and not uploaded yet, and the cache: one is not to be kept without the other. For all users.
ENV LUXFUSE_STATE_DIR=/var/cache/luxfuse/state XDG_CACHE_HOME=/var/cache
VOLUME /var/cache/luxfuse
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s CMD ["luxfuse", "status"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "luxfuse", "mount", "--foreground"]
