// Signals: what a handler is told, what it may change, and what it must find again afterwards.
#define _GNU_SOURCE
#include "check.h"
#include <cpuid.h>
#include <fenv.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t seen;
static siginfo_t info;
static sigjmp_buf back;

static void catch(int sig, void (*f)(int, siginfo_t *, void *), int flags) {
	struct sigaction sa = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
	CHECK(!sigaction(sig, &sa, 0));
}

static void note(int sig, siginfo_t *i, void *ctx) {
	(void)ctx;
	CHECK(i->si_signo == sig);
	info = *i;
	seen++;
}

static void jump(int sig, siginfo_t *i, void *ctx) {
	note(sig, i, ctx);
	siglongjmp(back, sig);
}

#define FAULT(statement) (sigsetjmp(back, 1) ? 1 : ({ statement; 0; }))

static void faults(void) {
	int all[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
	for (int i = 0; i < 5; i++)
		catch(all[i], jump, 0);
	volatile int *bad = (int *)0x1000;
	CHECK(FAULT(*bad = 1) && info.si_signo == SIGSEGV && info.si_code == SEGV_MAPERR && info.si_addr == (void *)0x1000);
	CHECK(FAULT(*(volatile int *)0) && info.si_addr == 0);
	char *p = mmap(0, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED && p[0] == 0);
	CHECK(FAULT(p[4097] = 1) && info.si_signo == SIGSEGV && info.si_code == SEGV_ACCERR && info.si_addr == p + 4097);
	CHECK(!mprotect(p, 4096, PROT_NONE));
	CHECK(FAULT((void)*(volatile char *)p) && info.si_code == SEGV_ACCERR && info.si_addr == p);
	CHECK(FAULT(((void (*)(void))(p + 4096))()) && info.si_code == SEGV_ACCERR && info.si_addr == p + 4096);
	CHECK(FAULT((void)*(volatile char *)0x8000000000000000) && info.si_signo == SIGSEGV);
	volatile int zero = 0, one = 1;
	CHECK(FAULT(one = one / zero) && info.si_signo == SIGFPE && info.si_code == FPE_INTDIV);
	CHECK(FAULT(__asm__ volatile("ud2")) && info.si_signo == SIGILL);
	CHECK(FAULT(__asm__ volatile("int3")) && info.si_signo == SIGTRAP);
	CHECK(FAULT(__asm__ volatile("hlt")) && info.si_signo == SIGSEGV);
	// Single steps.
	seen = 0;
	CHECK(FAULT(__asm__ volatile("pushf; orl $0x100,(%%rsp); popf; nop; nop" ::: "memory", "cc")) && info.si_signo == SIGTRAP);
	munmap(p, 8192);
	for (volatile int i = 0; i < 2000; i++)
		CHECK(FAULT(*bad = 1));
}

// The handler repairs what was wrong, or steps over it.
static char *guarded;

static void repair(int sig, siginfo_t *i, void *ctx) {
	note(sig, i, ctx);
	CHECK(!mprotect((void *)((uintptr_t)i->si_addr & -4096), 4096, PROT_READ | PROT_WRITE));
}

static void step_over(int sig, siginfo_t *i, void *ctx) {
	ucontext_t *uc = ctx;
	note(sig, i, ctx);
	uc->uc_mcontext.gregs[REG_RIP] += 2; // ud2
	uc->uc_mcontext.gregs[REG_RAX] = 0x1234;
}

static void repairs(void) {
	enum { PAGES = 256 };
	guarded = mmap(0, PAGES * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	catch(SIGSEGV, repair, 0);
	seen = 0;
	for (int i = 0; i < PAGES; i++)
		guarded[i * 4096 + i] = i;
	CHECK(seen == PAGES);
	for (int i = 0; i < PAGES; i++)
		CHECK(guarded[i * 4096 + i] == (char)i);
	munmap(guarded, PAGES * 4096);
	catch(SIGILL, step_over, 0);
	long rax = 1;
	__asm__ volatile("ud2" : "+a"(rax));
	CHECK(rax == 0x1234);
}

static int endless(char *p, int more) {
	volatile char frame[4096];
	frame[0] = *p;
	return more ? endless((char *)frame, more) + frame[0] : 0;
}

static void on_alt(int sig, siginfo_t *i, void *ctx) {
	stack_t st;
	CHECK(!sigaltstack(0, &st) && st.ss_flags & SS_ONSTACK);
	CHECK((char *)&st > (char *)st.ss_sp && (char *)&st < (char *)st.ss_sp + st.ss_size);
	st.ss_flags = 0;
	CHECK(sigaltstack(&st, 0) == -1 && errno == EPERM);
	jump(sig, i, ctx);
}

static void altstack(void) {
	stack_t st = {.ss_sp = malloc(65536), .ss_size = 65536}, old;
	CHECK(!sigaltstack(&st, 0));
	CHECK(!sigaltstack(0, &old) && old.ss_sp == st.ss_sp && old.ss_size == 65536 && old.ss_flags == 0);
	catch(SIGSEGV, on_alt, SA_ONSTACK);
	for (int i = 0; i < 3; i++) {
		char c = 1;
		CHECK(FAULT(c += endless(&c, i + 1)));
	}
	st.ss_size = 1000;
	CHECK(sigaltstack(&st, 0) == -1 && errno == ENOMEM);
	st.ss_flags = SS_DISABLE;
	CHECK(!sigaltstack(&st, 0));
	CHECK(!sigaltstack(0, &old) && old.ss_flags == SS_DISABLE);
}

static void masks(void) {
	sigset_t set, old, pend;
	catch(SIGUSR1, note, 0);
	catch(SIGUSR2, note, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	CHECK(!sigprocmask(SIG_BLOCK, &set, &old));
	seen = 0;
	raise(SIGUSR1);
	raise(SIGUSR1);
	CHECK(seen == 0);
	CHECK(!sigpending(&pend) && sigismember(&pend, SIGUSR1) && !sigismember(&pend, SIGUSR2));
	sigset_t none;
	sigemptyset(&none);
	CHECK(sigsuspend(&none) == -1 && errno == EINTR && seen == 1);
	CHECK(!sigprocmask(SIG_SETMASK, &old, &set) && sigismember(&set, SIGUSR1));
	CHECK(seen == 1);
	kill(getpid(), SIGUSR2);
	CHECK(seen == 2 && info.si_signo == SIGUSR2 && info.si_code == SI_USER && info.si_pid == getpid());
	// Ignored, then default-ignored.
	signal(SIGUSR1, SIG_IGN);
	raise(SIGUSR1);
	signal(SIGCHLD, SIG_DFL);
	raise(SIGCHLD);
	// Reset by SA_RESETHAND.
	catch(SIGUSR1, note, SA_RESETHAND);
	raise(SIGUSR1);
	struct sigaction sa;
	CHECK(!sigaction(SIGUSR1, 0, &sa) && sa.sa_handler == SIG_DFL);
	CHECK(sigaction(SIGKILL, &(struct sigaction){.sa_handler = SIG_IGN}, 0) == -1 && errno == EINVAL);
}

static void queued(void) {
	sigset_t set;
	siginfo_t si;
	catch(SIGUSR1, note, 0);
	seen = 0;
	CHECK(!sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 4711}));
	CHECK(seen == 1 && info.si_code == SI_QUEUE && info.si_value.sival_int == 4711);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	CHECK(!sigprocmask(SIG_BLOCK, &set, 0));
	struct timespec short_time = {.tv_nsec = 10000000};
	CHECK(sigtimedwait(&set, &si, &short_time) == -1 && errno == EAGAIN);
	raise(SIGUSR1);
	CHECK(sigwaitinfo(&set, &si) == SIGUSR1 && si.si_signo == SIGUSR1);
	CHECK(seen == 1);
	CHECK(!sigprocmask(SIG_UNBLOCK, &set, 0));
}

static volatile int depth, deepest;

static void nest(int sig, siginfo_t *i, void *ctx) {
	note(sig, i, ctx);
	if (++depth > deepest)
		deepest = depth;
	if (seen < 10)
		raise(sig);
	depth--;
}

static void nesting(void) {
	catch(SIGUSR1, nest, SA_NODEFER);
	seen = 0;
	raise(SIGUSR1);
	CHECK(seen == 10 && deepest == 10 && depth == 0);
	catch(SIGUSR1, nest, 0); // what is raised inside comes after
	seen = deepest = 0;
	raise(SIGUSR1);
	CHECK(seen == 10 && deepest == 1);
}

static int pipe_ends[2];

static void *later(void *thread) {
	usleep(30000);
	pthread_kill(*(pthread_t *)thread, SIGUSR1);
	usleep(30000);
	CHECK(write(pipe_ends[1], "x", 1) == 1);
	return 0;
}

/* Sends a signal again and again: the first may come before the call that it is to interrupt, on a busy host. */
static volatile int woken;
static void *pester(void *thread) {
	while (!woken) {
		usleep(30000);
		pthread_kill(*(pthread_t *)thread, SIGUSR1);
	}
	return 0;
}

static void restart(void) {
	pthread_t self = pthread_self(), t;
	char c;
	CHECK(!pipe(pipe_ends));
	catch(SIGUSR1, note, 0);
	seen = 0;
	pthread_create(&t, 0, later, &self);
	CHECK(read(pipe_ends[0], &c, 1) == -1 && errno == EINTR && seen == 1);
	CHECK(read(pipe_ends[0], &c, 1) == 1);
	pthread_join(t, 0);
	catch(SIGUSR1, note, SA_RESTART);
	pthread_create(&t, 0, later, &self);
	CHECK(read(pipe_ends[0], &c, 1) == 1 && c == 'x' && seen == 2);
	pthread_join(t, 0);
	woken = 0;
	pthread_create(&t, 0, pester, &self);
	struct timespec want = {.tv_sec = 100}, left;
	CHECK(nanosleep(&want, &left) == -1 && errno == EINTR && left.tv_sec == 99);
	woken = 1;
	pthread_join(t, 0);
	close(pipe_ends[0]);
	catch(SIGPIPE, note, 0);
	seen = 0;
	CHECK(write(pipe_ends[1], "x", 1) == -1 && errno == EPIPE && seen == 1);
	close(pipe_ends[1]);
}

// Vector registers: every bit of them survives any number of signals whose handlers use them too.
static volatile int stop;
static atomic_long storms;

__attribute__((target("avx"))) static void spoil_avx(void) {
	__asm__ volatile("vpcmpeqd %%xmm0,%%xmm0,%%xmm0\n vinsertf128 $1,%%xmm0,%%ymm0,%%ymm0\n vmovaps %%ymm0,%%ymm1\n"
			 "vmovaps %%ymm0,%%ymm7\n vmovaps %%ymm0,%%ymm15" ::
				 : "xmm0", "xmm1", "xmm7", "xmm15");
}

static int vectors; // bytes in one register: 16, 32 or 64

static void spoil(int sig, siginfo_t *i, void *ctx) {
	(void)sig, (void)i, (void)ctx;
	__asm__ volatile("fninit");
	if (vectors >= 32)
		spoil_avx();
	if (vectors == 64)
		__asm__ volatile(".byte 0x62,0xf3,0x7d,0x48,0x25,0xc0,0xff\n" // vpternlogd $0xff,%zmm0,%zmm0,%zmm0
				 ".byte 0x62,0xe1,0xfd,0x48,0x6f,0xf8\n"      // vmovdqa64 %zmm0,%zmm23
				 ".byte 0xc5,0xf4,0x47,0xc9" ::: "memory");   // kxorw %k1,%k1,%k1
	atomic_fetch_add(&storms, 1);
}

static uint8_t pattern[2][64 * 64] __attribute__((aligned(64)));

#define LOAD(op, reg, n, size) op " " #n "*" size "(%1),%%" reg #n "\n"
#define STORE(op, reg, n, size) op " %%" reg #n "," #n "*" size "(%2)\n"
#define SIXTEEN(m, op, reg, size)                                                                              \
	m(op, reg, 0, size) m(op, reg, 1, size) m(op, reg, 2, size) m(op, reg, 3, size) m(op, reg, 4, size)     \
	m(op, reg, 5, size) m(op, reg, 6, size) m(op, reg, 7, size) m(op, reg, 8, size) m(op, reg, 9, size)     \
	m(op, reg, 10, size) m(op, reg, 11, size) m(op, reg, 12, size) m(op, reg, 13, size) m(op, reg, 14, size) \
	m(op, reg, 15, size)
#define SIXTEEN_MORE(m, op, reg, size)                                                                         \
	m(op, reg, 16, size) m(op, reg, 17, size) m(op, reg, 18, size) m(op, reg, 19, size) m(op, reg, 20, size) \
	m(op, reg, 21, size) m(op, reg, 22, size) m(op, reg, 23, size) m(op, reg, 24, size) m(op, reg, 25, size) \
	m(op, reg, 26, size) m(op, reg, 27, size) m(op, reg, 28, size) m(op, reg, 29, size) m(op, reg, 30, size) \
	m(op, reg, 31, size)

static void hold_sse(const uint8_t *in, uint8_t *out, long n) {
	__asm__ volatile(SIXTEEN(LOAD, "movaps", "xmm", "16") "1: dec %0\n jnz 1b\n" SIXTEEN(STORE, "movaps", "xmm", "16")
			 : "+r"(n) : "r"(in), "r"(out)
			 : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
			   "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

__attribute__((target("avx"))) static void hold_avx(const uint8_t *in, uint8_t *out, long n) {
	__asm__ volatile(SIXTEEN(LOAD, "vmovaps", "ymm", "32") "1: dec %0\n jnz 1b\n" SIXTEEN(STORE, "vmovaps", "ymm", "32")
			 : "+r"(n) : "r"(in), "r"(out)
			 : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
			   "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

__attribute__((target("avx512f"))) static void hold_avx512(const uint8_t *in, uint8_t *out, long n) {
	unsigned k = 0x5a3c, got;
	__asm__ volatile("kmovw %3,%%k1\n" SIXTEEN(LOAD, "vmovaps", "zmm", "64") SIXTEEN_MORE(LOAD, "vmovaps", "zmm", "64")
			 "1: dec %0\n jnz 1b\n" SIXTEEN(STORE, "vmovaps", "zmm", "64") SIXTEEN_MORE(STORE, "vmovaps", "zmm", "64")
			 "kmovw %%k1,%3\n"
			 : "+r"(n) : "r"(in), "r"(out), "r"(k)
			 : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
			   "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",
			   "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
	(void)got;
}

static void *hold(void *arg) {
	const uint8_t *p = pattern[(long)arg];
	static __thread uint8_t out[64 * 64] __attribute__((aligned(64)));
	while (!stop) {
		size_t n = 16 * (size_t)vectors;
		if (vectors == 64) {
			n *= 2;
			hold_avx512(p, out, 100000);
		} else if (vectors == 32) {
			hold_avx(p, out, 100000);
		} else {
			hold_sse(p, out, 100000);
		}
		CHECK(!memcmp(p, out, n));
	}
	return 0;
}

static void vector_registers(void) {
	unsigned a, b, c, d, lo = 0, hi;
	__cpuid(1, a, b, c, d);
	if (c & bit_OSXSAVE)
		__asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	vectors = (lo & 0xe6) == 0xe6 ? 64 : (lo & 6) == 6 ? 32 : 16;
	if (vectors == 64) { // the state may be on without the instructions
		__cpuid_count(7, 0, a, b, c, d);
		if (!(b & bit_AVX512F))
			vectors = 32;
	}
	printf("registers of %d bytes\n", vectors);
	srand(1);
	for (size_t i = 0; i < sizeof pattern; i++)
		((uint8_t *)pattern)[i] = rand();
	catch(SIGUSR1, spoil, SA_RESTART);
	pthread_t t[2];
	stop = 0;
	for (long i = 0; i < 2; i++)
		CHECK(!pthread_create(&t[i], 0, hold, (void *)i));
	for (int i = 0; i < 300; i++) {
		pthread_kill(t[i % 2], SIGUSR1);
		usleep(1000);
	}
	stop = 1;
	for (int i = 0; i < 2; i++)
		CHECK(!pthread_join(t[i], 0));
	CHECK(storms > 0);
}

static void reset_rounding(int sig, siginfo_t *i, void *ctx) {
	note(sig, i, ctx);
	fesetround(FE_UPWARD);
	feraiseexcept(FE_INVALID);
}

static void *inherits(void *arg) {
	CHECK(fegetround() == FE_TOWARDZERO);
	return arg;
}

static void floating_point(void) {
	volatile double one = 1, three = 3;
	pthread_t t;
	catch(SIGUSR1, reset_rounding, 0);
	fesetround(FE_TOWARDZERO);
	feclearexcept(FE_ALL_EXCEPT);
	double down = one / three;
	raise(SIGUSR1);
	CHECK(fegetround() == FE_TOWARDZERO && !fetestexcept(FE_INVALID));
	CHECK(one / three == down);
	CHECK(!pthread_create(&t, 0, inherits, 0) && !pthread_join(t, 0));
	fesetround(FE_TONEAREST);
	long double x = 1.25L;
	for (int i = 0; i < 100; i++) {
		raise(SIGUSR1);
		x = x * 1.5L / 1.5L;
	}
	CHECK(x == 1.25L);
	// An exception that is not masked.
	catch(SIGFPE, jump, 0);
	unsigned mxcsr = 0x1f80 & ~0x200; // divide by zero
	if (!sigsetjmp(back, 1)) {
		volatile double zero = 0;
		__asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
		one = one / zero;
		CHECK(!"no exception");
	}
	mxcsr = 0x1f80;
	__asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
	CHECK(info.si_signo == SIGFPE);
}

static void tick(int sig, siginfo_t *i, void *ctx) { note(sig, i, ctx); }

static void expired(union sigval v) { atomic_fetch_add((atomic_int *)v.sival_ptr, 1); }

static void timers(void) {
	catch(SIGALRM, tick, SA_RESTART);
	struct itimerval it = {.it_interval = {.tv_usec = 2000}, .it_value = {.tv_usec = 2000}}, was;
	seen = 0;
	CHECK(!setitimer(ITIMER_REAL, &it, 0));
	for (int i = 0; i < 5000 && seen < 20; i++)
		usleep(1000);
	it = (struct itimerval){0};
	CHECK(!setitimer(ITIMER_REAL, &it, &was) && was.it_interval.tv_usec == 2000);
	CHECK(seen >= 20);
	CHECK(alarm(100) == 0 && alarm(0) == 100);

	catch(SIGUSR2, tick, SA_RESTART);
	timer_t id;
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2, .sigev_value.sival_int = 99};
	CHECK(!timer_create(CLOCK_MONOTONIC, &ev, &id));
	struct itimerspec ts = {.it_value = {.tv_nsec = 1000000}, .it_interval = {.tv_nsec = 1000000}}, now;
	seen = 0;
	CHECK(!timer_settime(id, 0, &ts, 0));
	for (int i = 0; i < 5000 && seen < 10; i++)
		usleep(1000);
	CHECK(seen >= 10 && info.si_code == SI_TIMER && info.si_value.sival_int == 99);
	CHECK(!timer_gettime(id, &now) && now.it_interval.tv_nsec == 1000000);
	CHECK(timer_getoverrun(id) >= 0);
	CHECK(!timer_delete(id));
	CHECK(timer_delete(id) != 0);

	static atomic_int calls;
	ev = (struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = expired, .sigev_value.sival_ptr = &calls};
	CHECK(!timer_create(CLOCK_REALTIME, &ev, &id));
	CHECK(!timer_settime(id, 0, &ts, 0));
	for (int i = 0; i < 5000 && calls < 3; i++)
		usleep(1000);
	CHECK(calls >= 3);
	CHECK(!timer_delete(id));
}

int main(int argc, char **argv) {
	if (argc == 2 && !strcmp(argv[1], "abort"))
		abort();
	if (argc == 2 && !strcmp(argv[1], "segv"))
		*(volatile int *)0x123 = 1;
	return run_tests((struct test[]){{"faults", faults}, {"repairs", repairs}, {"altstack", altstack}, {"masks", masks},
					 {"queued", queued}, {"nesting", nesting}, {"restart", restart},
					 {"vectors", vector_registers}, {"floats", floating_point}, {"timers", timers}, {0}},
			 argc, argv);
}
