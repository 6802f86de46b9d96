#!/bin/sh
# Makes the passwords of docker-compose.yml that do not exist yet: one for each service's role in PostgreSQL, and one for
# the administrator's. `make compose-up` runs this; who runs `docker compose up` by hand does so once.
set -eu
umask 077
directory=$(dirname "$0")/passwords
mkdir -p "$directory"
for name in administrator correlator orders inventory payments shipping parcels packaging drones delivery; do
  file=$directory/$name
  if ! test -s "$file"; then
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' > "$file.new"
    # The user of a container reads it, who is nobody here; the directory lets nobody else of this machine through.
    chmod 644 "$file.new"
    mv "$file.new" "$file"
  fi
done
