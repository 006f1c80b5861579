#!/bin/sh
# Builds SQLite and a program that uses it with the distribution's compiler, runs that, and prints the checksums of all results.
#
#   build.sh SOURCE TARGET
set -eu
src=$1
out=$2
rm -rf "$out"
mkdir -p "$out/site"
cd "$out"
echo "build: compiling"
tcc -DSQLITE_THREADSAFE=0 -DSQLITE_OMIT_LOAD_EXTENSION -c -o sqlite3.o "$src/sqlite3.c"
echo "build: linking"
tcc -I"$src" -o words "$src/words.c" sqlite3.o -lm
echo "build: running"
./words site/words.db "$src/sqlite3.c" site/index.html
sync
sha256sum sqlite3.o words site/index.html site/words.db
