# PostgreSQL on a root file system of Debian packages, for machines that reach no image registry (scripts/docker-images).
# Takes the variables of the official image that the tests and docker-compose.yml use. For tests and development.
ARG BASE
FROM ${BASE}
ARG MAJOR
ENV PATH=/usr/lib/postgresql/${MAJOR}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
COPY postgres-entrypoint /usr/local/bin/postgres-entrypoint
VOLUME /var/lib/postgresql/data
EXPOSE 5432
# A "fast" shutdown: TERM would wait for every client to leave.
STOPSIGNAL SIGINT
# Through sh: a file mode that a checkout or archive lost does not matter.
ENTRYPOINT ["sh", "/usr/local/bin/postgres-entrypoint"]
CMD ["postgres"]
