// Memory: the heap, mappings of all kinds, and what is left of them after they were changed.
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t seed = 88172645463325252u;

static uint64_t rnd(uint64_t *s) {
	*s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
	return *s;
}

static void fill(unsigned char *p, size_t n, unsigned char v) { memset(p, v, n); }

static void same(const unsigned char *p, size_t n, unsigned char v) {
	for (size_t i = 0; i < n; i++)
		CHECK(p[i] == v);
}

// Blocks of all sizes, from bytes to mapped ones, grown, shrunk and freed at random.
static void *heap(void *arg) {
	enum { N = 200 };
	struct { unsigned char *p; size_t n; unsigned char v; } b[N] = {{0}};
	uint64_t s = seed + (uintptr_t)arg * 977;
	for (int i = 0; i < 6000; i++) {
		int k = rnd(&s) % N;
		size_t n = rnd(&s) % (rnd(&s) % 50 ? 4000 : 600000) + 1;
		same(b[k].p, b[k].n, b[k].v);
		switch (rnd(&s) % 4) {
		case 0:
			free(b[k].p);
			b[k].p = 0, b[k].n = 0;
			break;
		case 1:
			free(b[k].p);
			CHECK(b[k].p = calloc(n, 1));
			same(b[k].p, n, 0);
			b[k].n = n;
			b[k].v = i;
			fill(b[k].p, n, i);
			break;
		default:
			CHECK(b[k].p = realloc(b[k].p, n));
			same(b[k].p, n < b[k].n ? n : b[k].n, b[k].v);
			b[k].n = n;
			b[k].v = i;
			fill(b[k].p, n, i);
		}
	}
	for (int k = 0; k < N; k++)
		free(b[k].p);
	return 0;
}

static void heaps(void) {
	pthread_t t[4];
	for (long i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], 0, heap, (void *)i));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(t[i], 0));
}

// Pages mapped, protected, discarded, moved and unmapped at random, against a model.
static void *mappings(void *arg) {
	enum { N = 64, MAX = 700 };
	struct { unsigned char *p; size_t pages; unsigned char v[MAX]; } *m = calloc(N, sizeof *m);
	uint64_t s = seed + 31 * (uintptr_t)arg;
	for (int i = 0; i < 1500; i++) {
		int k = rnd(&s) % N;
		size_t n = rnd(&s) % (rnd(&s) % 8 ? 20 : MAX) + 1;
		unsigned char *p = m[k].p;
		for (size_t j = 0; p && j < m[k].pages; j++)
			CHECK(p[j * 4096] == m[k].v[j] && p[j * 4096 + 4095] == m[k].v[j]);
		switch (p ? rnd(&s) % 5 : 0) {
		case 0: // a new one, perhaps in the place of the old one
			if (p && rnd(&s) % 2) {
				CHECK(mmap(p, m[k].pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
				memset(m[k].v, 0, MAX);
				break;
			}
			if (p)
				CHECK(!munmap(p, m[k].pages * 4096));
			m[k].p = mmap(0, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			CHECK(m[k].p != MAP_FAILED);
			m[k].pages = n;
			memset(m[k].v, 0, MAX);
			break;
		case 1:
			for (size_t j = 0; j < m[k].pages; j++) {
				m[k].v[j] = rnd(&s);
				p[j * 4096] = p[j * 4096 + 4095] = m[k].v[j];
			}
			break;
		case 2: { // discard a part
			size_t from = rnd(&s) % m[k].pages, to = from + rnd(&s) % (m[k].pages - from) + 1;
			CHECK(!madvise(p + from * 4096, (to - from) * 4096, MADV_DONTNEED));
			memset(m[k].v + from, 0, to - from);
			break;
		}
		case 3: // another size, elsewhere perhaps
			p = mremap(p, m[k].pages * 4096, n * 4096, MREMAP_MAYMOVE);
			CHECK(p != MAP_FAILED);
			if (n > m[k].pages)
				memset(m[k].v + m[k].pages, 0, n - m[k].pages);
			m[k].p = p;
			m[k].pages = n;
			break;
		case 4:
			CHECK(!mprotect(p, m[k].pages * 4096, PROT_READ));
			CHECK(!mprotect(p + (m[k].pages / 2) * 4096, 4096, PROT_NONE));
			CHECK(!mprotect(p, m[k].pages * 4096, PROT_READ | PROT_WRITE));
		}
	}
	for (int k = 0; k < N; k++)
		if (m[k].p)
			CHECK(!munmap(m[k].p, m[k].pages * 4096));
	free(m);
	return 0;
}

static void models(void) {
	pthread_t t[3];
	for (long i = 0; i < 3; i++)
		CHECK(!pthread_create(&t[i], 0, mappings, (void *)i));
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_join(t[i], 0));
}

// Large areas: huge pages are made, split, and made again in the same place.
static void large(void) {
	enum { MIB = 1 << 20 };
	for (int round = 0; round < 10; round++) {
		unsigned char *p = mmap(0, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(p != MAP_FAILED);
		for (int i = 0; i < 16 * MIB; i += 4096) {
			CHECK(p[i] == 0);
			p[i] = i >> 12;
		}
		CHECK(!munmap(p + 3 * MIB, 4096));
		CHECK(!mprotect(p + 5 * MIB, 4096, PROT_READ));
		CHECK(!madvise(p + 8 * MIB, 3 * MIB, MADV_DONTNEED));
		CHECK(mmap(p + 13 * MIB, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + 13 * MIB);
		for (int i = 0; i < 16 * MIB; i += 4096)
			if (i != 3 * MIB) {
				int zero = (i >= 8 * MIB && i < 11 * MIB) || (i >= 13 * MIB && i < 14 * MIB);
				CHECK(p[i] == (zero ? 0 : (unsigned char)(i >> 12)));
			}
		CHECK(!munmap(p, 16 * MIB));
	}
}

static void refused(void) {
	char *p = mmap(0, 4 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK(mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(p + 1, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(p, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
	CHECK(mmap(0, 4096, PROT_READ, MAP_PRIVATE, 77, 0) == MAP_FAILED && errno == EBADF);
	CHECK(mmap(0, (size_t)1 << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
	CHECK(munmap(p + 1, 4096) == -1 && errno == EINVAL);
	CHECK(munmap(p, 0) == -1 && errno == EINVAL);
	CHECK(!munmap(p + 2 * 4096, 4096) && !munmap(p + 2 * 4096, 4096)); // nothing there: no error
	CHECK(mprotect(p, 4 * 4096, PROT_READ) == -1 && errno == ENOMEM);
	CHECK(madvise(p + 2 * 4096, 4096, MADV_DONTNEED) == -1 && errno == ENOMEM);
	CHECK(mremap(p, 4096, 1 << 20, 0) == MAP_FAILED && errno == ENOMEM);
	CHECK(mremap(p + 2 * 4096, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
	CHECK(!munmap(p, 4 * 4096));
	// Addresses that only hint.
	p = mmap((void *)0x123450000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p == (void *)0x123450000 && !munmap(p, 4096));
	// A lot of address space costs nothing until it is touched.
	p = mmap(0, (size_t)1 << 36, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(p != MAP_FAILED && !munmap(p, (size_t)1 << 36));
	// System calls check what they are given.
	CHECK(write(1, (void *)0x1000, 10) == -1 && errno == EFAULT);
	p = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!host_kernel()) // which writes for a debugger there
		CHECK(getcwd(p, 4096) == 0 && errno == EFAULT);
	CHECK(!munmap(p, 4096));
}

static void breaks(void) {
	char *start = sbrk(0);
	CHECK(start != (char *)-1);
	CHECK(sysconf(_SC_PAGESIZE) == 4096);
}

// Code that is written, run, changed and run again.
static void code(void) {
	unsigned char *p = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	for (int i = 0; i < 1000; i++) {
		unsigned char f[] = {0xb8, i, i >> 8, 0, 0, 0xc3}; // mov $i,%eax; ret
		memcpy(p, f, sizeof f);
		CHECK(((int (*)(void))p)() == i);
	}
	CHECK(!mprotect(p, 4096, PROT_READ | PROT_EXEC));
	CHECK(((int (*)(void))p)() == 999);
	munmap(p, 4096);
}

static void auxiliary(void) {
	CHECK(getauxval(AT_PAGESZ) == 4096);
	CHECK(getauxval(AT_CLKTCK) == 100);
	unsigned char *r = (unsigned char *)getauxval(AT_RANDOM);
	int nonzero = 0;
	CHECK(r);
	for (int i = 0; i < 16; i++)
		nonzero |= r[i];
	CHECK(nonzero);
	CHECK(getauxval(AT_EXECFN) && *(char *)getauxval(AT_EXECFN));
	CHECK(!strcmp((char *)getauxval(AT_PLATFORM), "x86_64"));
	CHECK(!getauxval(AT_SECURE));
}

int main(int argc, char **argv) {
	return run_tests((struct test[]){{"heaps", heaps}, {"models", models}, {"large", large}, {"refused", refused},
					 {"breaks", breaks}, {"code", code}, {"auxiliary", auxiliary}, {0}},
			 argc, argv);
}
