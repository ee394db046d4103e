#!/bin/sh
# Makes what docker-compose.yml reads from ./secrets; what is there already stays. The folder is closed to others and the files in it
# are not: compose mounts them as they are, and the containers' own user, which is not root, has to read them.
set -eu
cd "$(dirname "$0")/.."
mkdir -p secrets
chmod 700 secrets
for name in postgres_password broker_password admin_token; do
    if [ ! -e "secrets/$name" ]; then
        (umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name.new")
        chmod 444 "secrets/$name.new"
        mv "secrets/$name.new" "secrets/$name"
        echo "made secrets/$name"
    fi
done
