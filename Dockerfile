# pgqueue for containers: the command as entrypoint, a user of its own, git for the built-in jobs.
#
# BASE is any Debian-based image with python3 >= 3.11 and its venv module. Packages come from the index that pip is
# set to; where a build reaches none, put wheels of pgqueue and all it depends on under wheels/ in the build context
# (`pip wheel --wheel-dir wheels '.[mail,web]'`; scripts/docker-images does) and the index is not asked.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
COPY . /source
RUN python3 -m venv /opt/pgqueue \
    && if ls /source/wheels/pgqueue-*.whl >/dev/null 2>&1; \
       then set -- --no-index --find-links=/source/wheels 'pgqueue[mail,web]'; else set -- '/source[mail,web]'; fi \
    && /opt/pgqueue/bin/pip install --no-cache-dir --disable-pip-version-check "$@"

FROM ${BASE}
RUN command -v git >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends git ca-certificates && rm -rf /var/lib/apt/lists/*)
# A fixed uid, so that the owner of a mounted directory can be set from outside.
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/pgqueue --shell /usr/sbin/nologin pgqueue \
    && install -d -o pgqueue -g pgqueue /var/lib/pgqueue
COPY --from=build /opt/pgqueue /opt/pgqueue
ENV PATH=/opt/pgqueue/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PGQUEUE_WORKSPACE_ROOT=/var/lib/pgqueue
USER pgqueue
WORKDIR /var/lib/pgqueue
# TERM drains; the exec form below makes the command the process that hears it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgqueue"]
CMD ["dispatcher"]
