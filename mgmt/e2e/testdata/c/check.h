// Self-checks for the C guests: each test is a function, run by its name, or all of them in turn.
#ifndef CHECK_H
#define CHECK_H
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                                            \
	do {                                                                                   \
		if (!(cond)) {                                                                 \
			fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #cond, errno); \
			exit(1);                                                               \
		}                                                                              \
	} while (0)

// host_kernel tells that the guest runs on engine process, where the host's kernel manages its memory.
static inline int host_kernel(void) { return getenv("ENGINE") && !strcmp(getenv("ENGINE"), "process"); }

struct test {
	const char *name;
	void (*run)(void);
};

// run_tests runs the tests named on the command line, or all of them.
static inline int run_tests(const struct test *tests, int argc, char **argv) {
	int ran = 0;
	for (const struct test *t = tests; t->name; t++) {
		int wanted = argc < 2;
		for (int i = 1; i < argc; i++)
			wanted |= !strcmp(argv[i], t->name);
		if (!wanted)
			continue;
		t->run();
		printf("ok %s\n", t->name);
		fflush(stdout);
		ran++;
	}
	CHECK(ran > 0);
	puts("all ok");
	return 0;
}
#endif
