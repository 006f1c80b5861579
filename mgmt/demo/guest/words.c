/* words DB TEXT HTML: puts every line of TEXT and the words of every eighth into an SQLite database DB, and writes what it found as a page.
 * The same TEXT gives the same bytes in both. Every transaction is on the disk before the next one begins. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sqlite3.h"

static sqlite3 *db;

static void check(int rc, const char *what)
{
	if (rc != SQLITE_OK && rc != SQLITE_DONE && rc != SQLITE_ROW) {
		fprintf(stderr, "words: %s: %s\n", what, sqlite3_errmsg(db));
		exit(1);
	}
}

static void run(const char *sql)
{
	check(sqlite3_exec(db, sql, NULL, NULL, NULL), sql);
}

static void bump(sqlite3_stmt *s, const char *text, int n)
{
	check(sqlite3_bind_text(s, 1, text, n, SQLITE_TRANSIENT), "bind");
	check(sqlite3_step(s), "step");
	check(sqlite3_reset(s), "reset");
}

int main(int argc, char **argv)
{
	enum { perTransaction = 2000, sample = 8 };
	static char line[1 << 16];
	sqlite3_stmt *put, *count, *top;
	FILE *in, *out;
	long n = 0, words = 0;

	if (argc != 4) {
		fprintf(stderr, "usage: words DB TEXT HTML\n");
		return 2;
	}
	remove(argv[1]);
	check(sqlite3_open(argv[1], &db), argv[1]);
	in = fopen(argv[2], "r");
	out = fopen(argv[3], "w");
	if (!in || !out) {
		perror(in ? argv[3] : argv[2]);
		return 1;
	}
	run("PRAGMA synchronous = FULL; CREATE TABLE line (text TEXT); CREATE TABLE word (text TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID; BEGIN");
	check(sqlite3_prepare_v2(db, "INSERT INTO line VALUES (?)", -1, &put, NULL), "prepare");
	check(sqlite3_prepare_v2(db, "INSERT INTO word VALUES (?, 1) ON CONFLICT DO UPDATE SET n = n + 1", -1, &count, NULL), "prepare");
	while (fgets(line, sizeof line, in)) {
		bump(put, line, -1);
		for (char *p = line; *p;) {
			char *from = p;
			while (isalpha((unsigned char)*p) || *p == '_')
				p++;
			if (p - from > 3 && n % sample == 0) {
				bump(count, from, p - from);
				words++;
			}
			if (p == from)
				p++;
		}
		if (++n % perTransaction == 0) {
			run("COMMIT; BEGIN");
			printf("words: %ld lines\n", n);
			fflush(stdout);
		}
	}
	run("COMMIT");
	fprintf(out, "<title>SQLite, built in a Grail VM</title>\n<p>SQLite %s read the %ld lines of itself and counted %ld words in every eighth.\n<ol>\n", sqlite3_libversion(),
		n, words);
	check(sqlite3_prepare_v2(db, "SELECT text, n FROM word ORDER BY n DESC, text LIMIT 10", -1, &top, NULL), "prepare");
	while (sqlite3_step(top) == SQLITE_ROW)
		fprintf(out, "<li>%s, %d\n", sqlite3_column_text(top, 0), sqlite3_column_int(top, 1));
	fprintf(out, "</ol>\n");
	if (fclose(out)) {
		perror(argv[3]);
		return 1;
	}
	sqlite3_finalize(put);
	sqlite3_finalize(count);
	sqlite3_finalize(top);
	check(sqlite3_close(db), "close");
	printf("words: %ld lines in all\n", n);
	return 0;
}
