// What a guest may try against its VM: the first argument says what.
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define SYSTEM ((volatile char *)0x7ffff0000000) // where engine kvm has its stub, tables and task segments

static void *park(void *arg) {
	pause();
	return arg;
}

// As many threads as the VM gives; it must refuse some day, and go on.
static int threads(void) {
	pthread_attr_t a;
	pthread_t t;
	int n = 0;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 16384);
	while (n < 10000 && !pthread_create(&t, &a, park, 0))
		n++;
	printf("%d threads\n", n);
	return n == 0;
}

// Overlapping, enormous and forbidden addresses.
static int maps(void) {
	static const uintptr_t at[] = {0, 0x1000, 0x7ffff0000000, 0x7fffffffe000, 0x7ffffffff000, 0x800000000000, 0xffff800000000000, ~(uintptr_t)0xfff};
	static const size_t size[] = {0, 1, 4096, (size_t)1 << 30, (size_t)1 << 46, (size_t)1 << 47, (size_t)1 << 63, ~(size_t)0};
	int refused = 0;
	for (unsigned i = 0; i < sizeof at / sizeof *at; i++)
		for (unsigned k = 0; k < sizeof size / sizeof *size; k++) {
			void *p = mmap((void *)at[i], size[k], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			refused += p == MAP_FAILED;
			if (p != MAP_FAILED)
				munmap(p, size[k]);
			if (host_kernel())
				continue; // it would do to the program itself what it asks for
			mprotect((void *)at[i], size[k], PROT_READ | PROT_WRITE | PROT_EXEC);
			if (at[i] >= 0x7ffff0000000)
				munmap((void *)at[i], size[k]);
			madvise((void *)at[i], size[k], MADV_DONTNEED);
		}
	printf("%d maps refused\n", refused);
	return refused == 0;
}

static int flood(void) {
	static char b[1 << 16];
	memset(b, 'x', sizeof b);
	for (int i = 0; i < 1024; i++) // 64 MiB without a line end
		for (size_t done = 0; done < sizeof b;) {
			ssize_t n = write(2, b + done, sizeof b - done);
			if (n < 0)
				return 1;
			done += n;
		}
	return 0;
}

int main(int argc, char **argv) {
	const char *w = argc > 1 ? argv[1] : "";
	if (!strcmp(w, "cli"))
		__asm__ volatile("cli");
	else if (!strcmp(w, "hlt"))
		__asm__ volatile("hlt");
	else if (!strcmp(w, "cr3"))
		__asm__ volatile("mov %0, %%cr3" ::"r"(0ul));
	else if (!strcmp(w, "wrmsr"))
		__asm__ volatile("wrmsr" ::"c"(0xc0000082), "a"(0), "d"(0));
	else if (!strcmp(w, "lgdt"))
		__asm__ volatile("lgdt (%0)" ::"r"(w));
	else if (!strcmp(w, "out"))
		__asm__ volatile("outb %%al, $0x80" ::"a"(0));
	else if (!strcmp(w, "unmapped"))
		*(volatile char *)0x10 = 1;
	else if (!strcmp(w, "stub"))
		((void (*)(void))SYSTEM)();
	else if (!strcmp(w, "stub-write"))
		*SYSTEM = 1;
	else if (!strcmp(w, "tables"))
		return SYSTEM[0x4000];
	else if (!strcmp(w, "stack")) {
		__asm__ volatile("xor %%esp, %%esp; push %%rax" ::: "memory");
	} else if (!strcmp(w, "noncanonical"))
		__asm__ volatile("jmp *%0" ::"r"(0x800000000000ul));
	else if (!strcmp(w, "threads"))
		return threads();
	else if (!strcmp(w, "maps"))
		return maps();
	else if (!strcmp(w, "flood"))
		return flood();
	else
		return 99;
	puts("still here");
	return 0;
}
