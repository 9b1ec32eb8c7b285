#!/bin/sh
# Start Valkey or Redis with the users of users.acl. Arguments are the server's own.
#
# Each user's password is in the environment: PRODUCER_PASSWORD, WORKER_PASSWORD,
# OPERATOR_PASSWORD, ADMIN_PASSWORD. Without one that user can't log in. The server gets hashes,
# in ACL_FILE (/tmp/users.acl), which is written anew at each start.
set -eu
umask 077

file=${ACL_FILE:-/tmp/users.acl}
while read -r line; do
  user=${line#user }
  user=${user%% *}
  variable=$(printf %s "$user" | tr '[:lower:]' '[:upper:]')_PASSWORD
  eval "password=\${$variable:-}"
  unset "$variable" # the server's environment shows none
  if [ -n "$password" ]; then
    line="$line #$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
  fi
  printf '%s\n' "$line"
done <"$(dirname "$0")/users.acl" >"$file"
unset password line
exec "${REDIS_SERVER:-valkey-server}" "$@" --aclfile "$file"
