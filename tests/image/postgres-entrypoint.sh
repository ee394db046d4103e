#!/bin/sh
# What the image `postgres` does with POSTGRES_USER, POSTGRES_PASSWORD_FILE and POSTGRES_INITDB_ARGS, on Debian's packages.
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin)
mkdir -p /var/lib/postgresql /var/run/postgresql
chown postgres:postgres /var/lib/postgresql /var/run/postgresql
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # shellcheck disable=SC2086 # several options in one variable
    as_postgres "$bin/initdb" --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    as_postgres "$bin/pg_ctl" --pgdata "$PGDATA" --wait --options "-c listen_addresses=''" start
    PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") as_postgres "$bin/createdb" --username "$POSTGRES_USER" "$POSTGRES_USER"
    as_postgres "$bin/pg_ctl" --pgdata "$PGDATA" --wait stop
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups "$bin/postgres" -D "$PGDATA" -c "listen_addresses=*"
