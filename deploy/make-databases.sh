#!/bin/sh
# Makes a role and a database of its own for each password in /run/secrets but the administrator's. PostgreSQL's image
# runs this when its volume is empty. Later, where a service was added or a password changed:
#   docker compose exec postgres /docker-entrypoint-initdb.d/make-databases.sh
set -eu
for file in /run/secrets/*; do
  name=$(basename "$file")
  if test "$name" = administrator; then
    continue
  fi
  FILE=$file psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --set=name="$name" --username="$POSTGRES_USER" \
    --dbname=postgres --output=/dev/null <<'SQL'
\set password `cat "$FILE"`
SELECT format('CREATE ROLE %I LOGIN', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
