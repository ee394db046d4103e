#!/bin/sh
# Valkey with one user, the server's own: it may touch the product's keys, make and remove the users of devices, and nothing else.
# Users of devices live in memory: the reaper makes them again within seconds of a restart.
set -eu
umask 077
users=/tmp/users.acl
digest=$(tr -d '\r\n' < /run/secrets/broker_password | sha256sum | cut -d ' ' -f 1)
cat > "$users" <<RULES
user default off
user pruneloop on #$digest resetchannels ~prune:* &prune:* &prune:core:/0.celery.pidbox +@all -@admin -@dangerous +acl|setuser +acl|deluser +acl|users +info
RULES
exec valkey-server --aclfile "$users" --dir /data --appendonly yes --appendfsync everysec --maxmemory-policy noeviction "$@"
