// cguest is the C guest of this package's tests: its first argument says what to do.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long raw(long nr, long a, long b, long c, long d, long e, long f) {
	long ret;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return ret;
}

enum { FUTEX_WAIT = 0, FUTEX_WAKE = 1, FUTEX_PRIVATE_FLAG = 128 };

static long now_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

// --- faults
__attribute__((noinline)) static int fault(volatile int *p) { return *p + 1; }
__attribute__((noinline)) static int outer(volatile int *p) { return fault(p) + 1; }

// --- hostile
static char stack[65536] __attribute__((aligned(16)));
static int child(void *unused) { (void)unused; _exit(3); }

static void tell(const char *what, long ret) { printf("%s=%ld\n", what, ret); }

static void hostile(void) {
	char *argv[] = {"sh", 0}, *env[] = {0};
	tell("execve", raw(SYS_execve, (long)"/bin/sh", (long)argv, (long)env, 0, 0, 0));
	tell("execveat", raw(SYS_execveat, 3, (long)"", (long)argv, (long)env, 0x1000, 0));
	tell("openat", raw(SYS_openat, AT_FDCWD, (long)"/etc/passwd", O_RDONLY, 0, 0, 0));
	tell("open", raw(SYS_open, (long)"/proc/self/mem", O_RDWR, 0, 0, 0, 0));
	tell("socket", raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0));
	tell("ptrace", raw(SYS_ptrace, 0, 0, 0, 0, 0, 0));
	tell("fork", raw(SYS_fork, 0, 0, 0, 0, 0, 0));
	tell("vfork-clone", raw(SYS_clone, 0x4100 | SIGCHLD, (long)(stack + 60000), 0, 0, 0, 0));
	tell("untraced-clone", raw(SYS_clone, 0x50f00 | 0x800000, (long)(stack + 60000), 0, 0, 0, 0));
	tell("pidfd-clone", raw(SYS_clone, 0x50f00 | 0x1000, (long)(stack + 60000), 0, 0, 0, 0));
	tell("newuser-clone", raw(SYS_clone, 0x50f00 | 0x10000000, (long)(stack + 60000), 0, 0, 0, 0));
	tell("clone3", raw(SYS_clone3, 0, 0, 0, 0, 0, 0));
	tell("kill", raw(SYS_kill, 2, SIGKILL, 0, 0, 0, 0));
	tell("killall", raw(SYS_kill, -1, SIGKILL, 0, 0, 0, 0));
	tell("tgkill", raw(SYS_tgkill, 2, 2, SIGKILL, 0, 0, 0));
	tell("mount", raw(SYS_mount, (long)"none", (long)"/", (long)"tmpfs", 0, 0, 0));
	tell("unshare", raw(SYS_unshare, 0x10000000, 0, 0, 0, 0, 0));
	tell("seccomp", raw(SYS_seccomp, 1, 0, 0, 0, 0, 0));
	tell("prctl", raw(SYS_prctl, 1, 0, 0, 0, 0, 0));
	tell("bpf", raw(SYS_bpf, 0, 0, 0, 0, 0, 0));
	tell("io_uring", raw(425, 8, 0, 0, 0, 0, 0));
	tell("userfaultfd", raw(SYS_userfaultfd, 0, 0, 0, 0, 0, 0));
	tell("memfd", raw(SYS_memfd_create, (long)"x", 0, 0, 0, 0, 0));
	tell("setuid", raw(SYS_setuid, 0, 0, 0, 0, 0, 0));
	tell("mlockall", raw(SYS_mlockall, 3, 0, 0, 0, 0, 0));
	tell("ksm", raw(SYS_madvise, (long)stack, 4096, 12, 0, 0, 0));
	tell("shared-anonymous", raw(SYS_mmap, 0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	tell("huge", raw(SYS_mmap, 0, 2 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
	tell("x32", raw(SYS_getpid | 0x40000000, 0, 0, 0, 0, 0, 0));
	tell("minus-one", raw(-1, 0, 0, 0, 0, 0, 0));
	tell("dead-fd", raw(SYS_write, 99, (long)"x", 1, 0, 0, 0));
	int mapped = 0;
	for (int fd = 0; fd < 64; fd++)
		if (raw(SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) != -EBADF)
			mapped++;
	tell("descriptors", mapped);
	long huge = raw(SYS_mmap, 0, 1L << 46, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	tell("enormous", huge);
	tell("wrap", raw(SYS_mmap, -4096, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	tell("kernel", raw(SYS_mmap, 0xffff800000000000, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	struct { uint64_t base, len; } iov = {(uint64_t)stack, 8};
	tell("vm_read", raw(SYS_process_vm_readv, 1, (long)&iov, 1, (long)&iov, 1, 0));
}

// --- threads
static void *sleeper(void *p) {
	pause();
	return p;
}

static void threads(int n) {
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 16384);
	int made = 0, failed = 0;
	for (int i = 0; i < n; i++) {
		pthread_t t;
		int err = pthread_create(&t, &attr, sleeper, 0);
		if (!err)
			made++;
		else if (err == EAGAIN)
			failed++;
	}
	printf("made %d failed %d\n", made, failed);
}

static void *nothing(void *p) { return p; }

static void churn(int n) {
	long ok = 0;
	for (int i = 0; i < n; i++) {
		pthread_t t;
		if (pthread_create(&t, 0, nothing, 0) == 0 && pthread_join(t, 0) == 0)
			ok++;
	}
	printf("joined %ld\n", ok);
}

// --- signals
static volatile sig_atomic_t handled, stop;
static volatile long in_handler, wrong;

static void on_signal(int sig, siginfo_t *info, void *ctx) {
	(void)ctx;
	handled++;
	if (sig == SIGUSR1 && (info->si_code != SI_TKILL || info->si_pid != getpid()))
		wrong++;
	long h = in_handler++;
	if (raw(0x4702, h, 0, 0, 0, 0, 0) != h)
		wrong++;
}

static pid_t victim;

static void *storm(void *unused) {
	(void)unused;
	while (!stop) {
		raw(SYS_tgkill, getpid(), victim, SIGUSR1, 0, 0, 0);
		struct timespec t = {0, 20000};
		nanosleep(&t, 0);
	}
	return 0;
}

static void once(int n, int nr) {
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
	sigaction(SIGUSR1, &sa, 0);
	victim = gettid();
	pthread_t t;
	pthread_create(&t, 0, storm, 0);
	long bad = 0;
	for (long i = 0; i < n; i++)
		if (raw(nr, i, 0, 0, 0, 0, 0) != i)
			bad++;
	stop = 1;
	pthread_join(t, 0);
	printf("bad %ld wrong %ld interrupted %d\n", bad, wrong, handled > 0);
	raw(0x4704, handled, 0, 0, 0, 0, 0);
}

// Threads that repeat one and the same call: the supervisor counts per thread.
enum { MAX_VICTIMS = 4 };
static pid_t victims[MAX_VICTIMS];
static long per_victim, lost, repeated;
static volatile int victims_left;

static void on_same(int sig) { (void)sig; __atomic_add_fetch(&handled, 1, __ATOMIC_SEQ_CST); }

static void *repeat(void *p) {
	long me = (long)p;
	victims[me] = gettid();
	for (long i = 0, want = 0; i < per_victim; i++, want++) {
		long got = raw(0x4705, me, 0, 0, 0, 0, 0);
		if (got < want)
			__atomic_add_fetch(&lost, 1, __ATOMIC_SEQ_CST);
		else if (got > want)
			__atomic_add_fetch(&repeated, got - want, __ATOMIC_SEQ_CST);
		want = got;
	}
	victims[me] = 0;
	__atomic_sub_fetch(&victims_left, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static void same(long n, int count) {
	struct sigaction sa = {.sa_handler = on_same};
	sigaction(SIGUSR1, &sa, 0);
	per_victim = n / count;
	victims_left = count;
	pthread_t t[MAX_VICTIMS];
	for (long i = 0; i < count; i++)
		pthread_create(&t[i], 0, repeat, (void *)i);
	while (victims_left) {
		for (int i = 0; i < count; i++)
			if (victims[i])
				raw(SYS_tgkill, getpid(), victims[i], SIGUSR1, 0, 0, 0);
		struct timespec ts = {0, 20000};
		nanosleep(&ts, 0);
	}
	for (int i = 0; i < count; i++)
		pthread_join(t[i], 0);
	printf("lost %ld interrupted %d\n", lost, handled > 0);
	raw(0x4706, repeated, 0, 0, 0, 0, 0);
	raw(0x4704, handled, 0, 0, 0, 0, 0);
}

static void on_alarm(int sig) { handled = sig; }

static void alarmed(int restart) {
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = restart ? SA_RESTART : 0};
	sigaction(SIGALRM, &sa, 0);
	struct itimerval it = {.it_value = {0, 20000}};
	setitimer(ITIMER_REAL, &it, 0);
	char c;
	int n = read(0, &c, 1);
	printf("read %d errno %d handled %d\n", n, n < 0 ? errno : 0, handled);
}

static void pending(void) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, 0);
	raise(SIGUSR1);
	kill(getpid(), SIGUSR1);
	int sig = 0;
	sigwait(&s, &sig);
	struct sigaction ign = {.sa_handler = SIG_IGN};
	sigaction(SIGUSR2, &ign, 0);
	raise(SIGUSR2);
	raise(SIGCHLD);
	raise(SIGURG);
	printf("waited %d\n", sig);
}

// --- futex ping-pong, native
static uint32_t ball;

static void pass(uint32_t from, uint32_t to) {
	while (__atomic_load_n(&ball, __ATOMIC_SEQ_CST) != from)
		raw(SYS_futex, (long)&ball, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, to, 0, 0, 0);
	__atomic_store_n(&ball, to, __ATOMIC_SEQ_CST);
	raw(SYS_futex, (long)&ball, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0);
}

static void *pong(void *p) {
	for (long i = 0; i < (long)p; i++)
		pass(1, 0);
	return 0;
}

static void futexes(long n) {
	pthread_t t;
	pthread_create(&t, 0, pong, (void *)n);
	long start = now_ns();
	for (long i = 0; i < n; i++)
		pass(0, 1);
	pthread_join(t, 0);
	printf("%ld\n", (now_ns() - start) / n);
}

static void ping(long n) {
	long start = now_ns();
	for (long i = 0; i < n; i++)
		raw(0x4700, i, 0, 0, 0, 0, 0);
	printf("%ld\n", (now_ns() - start) / n);
}

static void natives(long n) {
	long start = now_ns();
	for (long i = 0; i < n; i++)
		raw(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
	long yield = (now_ns() - start) / n;
	start = now_ns();
	for (long i = 0; i < n; i++)
		raw(SYS_futex, (long)&ball, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0);
	printf("%ld %ld\n", yield, (now_ns() - start) / n);
}

static void grant(void) {
	long fd = raw(0x4710, 0, 0, 0, 0, 0, 0);
	char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		printf("mmap: %d\n", errno);
		return;
	}
	printf("grant at fd %ld: %s\n", fd, p);
	strcpy(p + 4096, "written by the guest");
	raw(SYS_close, fd, 0, 0, 0, 0, 0);
	printf("again: %ld\n", raw(SYS_mmap, 0, 4096, 1, MAP_SHARED, fd, 0));
}

int main(int argc, char **argv) {
	setvbuf(stdout, 0, _IOLBF, 1024);
	const char *what = argc > 1 ? argv[1] : "hello";
	long n = argc > 2 ? atol(argv[2]) : 0;
	if (!strcmp(what, "hello")) printf("hello from C, %d arguments\n", argc);
	else if (!strcmp(what, "segv")) return outer((int *)0x1234560);
	else if (!strcmp(what, "abort")) abort();
	else if (!strcmp(what, "ud2")) __asm__ volatile("ud2");
	else if (!strcmp(what, "hlt")) __asm__ volatile("hlt");
	else if (!strcmp(what, "fpe")) { volatile int zero = 0; return argc / zero; }
	else if (!strcmp(what, "jump")) ((void (*)(void))0x123450000)();
	else if (!strcmp(what, "int80")) __asm__ volatile("int $0x80" : : "a"(20));
	else if (!strcmp(what, "kill9")) { raw(SYS_kill, getpid(), SIGKILL, 0, 0, 0, 0); pause(); }
	else if (!strcmp(what, "term")) { raise(SIGTERM); pause(); }
	else if (!strcmp(what, "block")) { char c; puts("ready"); read(0, &c, 1); }
	else if (!strcmp(what, "spin")) { puts("ready"); for (;;) ; }
	else if (!strcmp(what, "stack")) { volatile char *p = __builtin_alloca(n); for (long i = n - 1; i >= 0; i -= 4096) p[i] = 1; }
	else if (!strcmp(what, "hostile")) hostile();
	else if (!strcmp(what, "threads")) threads(n);
	else if (!strcmp(what, "churn")) churn(n);
	else if (!strcmp(what, "once")) once(n, 0x4701);
	else if (!strcmp(what, "once-install")) once(n, 0x4703);
	else if (!strcmp(what, "same")) same(n, 1);
	else if (!strcmp(what, "same-threads")) same(n, MAX_VICTIMS);
	else if (!strcmp(what, "alarm")) alarmed(n);
	else if (!strcmp(what, "pending")) pending();
	else if (!strcmp(what, "futexes")) futexes(n);
	else if (!strcmp(what, "ping")) ping(n);
	else if (!strcmp(what, "natives")) natives(n);
	else if (!strcmp(what, "grant")) grant();
	else if (!strcmp(what, "hog")) {
		long got = 0;
		for (;; got++) {
			char *p = mmap(0, 1 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (p == MAP_FAILED) break;
			memset(p, 1, 1 << 20);
		}
		printf("got %ld MiB, %d\n", got, errno);
	} else if (!strcmp(what, "clone-fault")) { // a fork that must not happen
		printf("%ld\n", raw(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0));
	}
	(void)child;
	return 0;
}
