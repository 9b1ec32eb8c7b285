#!/usr/bin/env bash
# Unpack Debian's redis-server into a folder: a server with TLS, and of another version than the
# embedded one, for the tests that need either. Nothing is installed and no service is started.
#
#   tools/debian_redis.sh [FOLDER]     default: .debian-redis in the checkout, where the tests look
set -euo pipefail

folder=${1:-$(dirname "${BASH_SOURCE[0]}")/../.debian-redis}
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)
server=$folder/bin/redis-server

give_up() {
  echo "Debian's redis-server can't be had here ($1): tests that need it are skipped." >&2
  exit 1
}

if "$server" --version >/dev/null 2>&1 || command -v redis-server >/dev/null; then exit 0; fi
for tool in apt-get dpkg; do
  command -v "$tool" >/dev/null || give_up "there is no $tool"
done

# apt's own package lists may be missing, as in a container image, or not ours to write.
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/packages"
options=(-qq -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt"
  -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=20)
timeout 120 apt-get "${options[@]}" update || give_up "its package lists can't be fetched"
# The server and those of its libraries the system lacks.
packages=$(apt-get "${options[@]}" --simulate --no-install-recommends install redis-server |
  awk '/^Inst/ {print $2}') || give_up "apt can't say what it needs"
# shellcheck disable=SC2086 - a list of names
(cd "$folder/packages" && timeout 120 apt-get "${options[@]}" download $packages) ||
  give_up "its packages can't be fetched"
for package in "$folder"/packages/*.deb; do
  dpkg --extract "$package" "$folder/root"
done

libraries=$(find "$folder/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" \
  "$folder/root/usr/bin/redis-server" >"$server"
chmod +x "$server"
rm -rf "$folder/apt" "$folder/packages"
"$server" --version >/dev/null || give_up "it doesn't run"
