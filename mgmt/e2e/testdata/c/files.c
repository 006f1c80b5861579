// Descriptors, files, pipes, polls, and the clock.
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void temporary(void) {
	char buf[64];
	struct stat st;
	int fd = open("/tmp/a", O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(fd >= 3);
	CHECK(open("/tmp/a", O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
	CHECK(write(fd, "hello, world", 12) == 12);
	CHECK(pread(fd, buf, 5, 7) == 5 && !memcmp(buf, "world", 5));
	CHECK(pwrite(fd, "W", 1, 7) == 1);
	CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, buf, 64) == 12 && !memcmp(buf, "hello, World", 12));
	CHECK(!ftruncate(fd, 100000));
	CHECK(!fstat(fd, &st) && st.st_size == 100000 && S_ISREG(st.st_mode));
	CHECK(lseek(fd, -1, SEEK_END) == 99999 && read(fd, buf, 64) == 1 && buf[0] == 0);
	struct iovec v[3] = {{"ab", 2}, {"", 0}, {"cd", 2}};
	int app = open("/tmp/a", O_WRONLY | O_APPEND);
	CHECK(writev(app, v, 3) == 4);
	CHECK(lseek(fd, 100000, SEEK_SET) == 100000 && read(fd, buf, 64) == 4 && !memcmp(buf, "abcd", 4));
	char *m = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (host_kernel()) {
		CHECK(m == MAP_FAILED && errno == EBADF);
	} else {
		CHECK(m != MAP_FAILED && !memcmp(m, "hello, World", 12));
		m[0] = 'J';
		CHECK(pread(fd, buf, 1, 0) == 1 && buf[0] == 'h');
		CHECK(!munmap(m, 8192));
	}
	CHECK(!close(app) && !close(fd) && close(fd) == -1 && errno == EBADF);
	CHECK(!rename("/tmp/a", "/tmp/b") && access("/tmp/a", F_OK) == -1 && errno == ENOENT);
	CHECK(!mkdir("/tmp/d", 0700) && !symlink("../b", "/tmp/d/l") && !stat("/tmp/d/l", &st) && st.st_size == 100004);
	CHECK(readlink("/tmp/d/l", buf, 64) == 4);
	DIR *d = opendir("/tmp");
	int entries = 0;
	CHECK(d);
	for (struct dirent *e; (e = readdir(d));)
		entries++;
	CHECK(!closedir(d) && entries == 4); // . .. b d
	CHECK(rmdir("/tmp/d") == -1 && errno == ENOTEMPTY);
	CHECK(!unlink("/tmp/d/l") && !rmdir("/tmp/d") && !unlink("/tmp/b"));
	CHECK(!chdir("/tmp") && getcwd(buf, 64) && !strcmp(buf, "/tmp"));
	// The standard library on top of it.
	FILE *f = fopen("x", "w+");
	CHECK(f);
	for (int i = 0; i < 20000; i++)
		CHECK(fprintf(f, "%d\n", i) > 0);
	rewind(f);
	for (int i = 0, k; i < 20000; i++)
		CHECK(fscanf(f, "%d", &k) == 1 && k == i);
	CHECK(!fclose(f) && !unlink("x"));
	f = tmpfile();
	CHECK(f && fputs("x", f) >= 0 && !fclose(f));
}

static int ends[2];

static void *pump(void *arg) {
	uint32_t v[1000];
	for (uint32_t i = 0; i < 200 * 1000;) {
		for (int k = 0; k < 1000; k++)
			v[k] = i++;
		for (size_t at = 0; at < sizeof v;) {
			ssize_t n = write(ends[1], (char *)v + at, sizeof v - at);
			CHECK(n > 0);
			at += n;
		}
	}
	close(ends[1]);
	return arg;
}

static void pipes(void) {
	pthread_t t;
	uint32_t want = 0, v;
	CHECK(!pipe(ends) && !pthread_create(&t, 0, pump, 0));
	FILE *f = fdopen(ends[0], "r");
	while (fread(&v, 4, 1, f) == 1)
		CHECK(v == want++);
	CHECK(want == 200 * 1000 && feof(f));
	CHECK(!fclose(f) && !pthread_join(t, 0));
	CHECK(!pipe2(ends, O_NONBLOCK));
	CHECK(read(ends[0], &v, 4) == -1 && errno == EAGAIN);
	ssize_t total = 0, n;
	char block[4096] = {0};
	while ((n = write(ends[1], block, sizeof block)) > 0)
		total += n;
	CHECK(errno == EAGAIN && total >= 4096);
	close(ends[0]);
	close(ends[1]);
}

static void *poke(void *arg) {
	usleep(20000);
	CHECK(write(*(int *)arg, "12345678", 8) == 8);
	return 0;
}

static void polls(void) {
	pthread_t t;
	CHECK(!pipe(ends));
	int ev = eventfd(0, 0);
	CHECK(ev >= 0);
	struct pollfd p[2] = {{.fd = ends[0], .events = POLLIN}, {.fd = ev, .events = POLLIN}};
	CHECK(poll(p, 2, 10) == 0);
	CHECK(!pthread_create(&t, 0, poke, &ends[1]));
	CHECK(poll(p, 2, 10000) == 1 && p[0].revents == POLLIN && !p[1].revents);
	CHECK(!pthread_join(t, 0));
	fd_set set;
	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	FD_SET(ev, &set);
	struct timeval tv = {.tv_sec = 10};
	CHECK(select((ev > ends[0] ? ev : ends[0]) + 1, &set, 0, 0, &tv) == 1 && FD_ISSET(ends[0], &set));
	int ep = epoll_create1(0);
	struct epoll_event e = {.events = EPOLLIN, .data.u32 = 1}, out[4];
	CHECK(ep >= 0 && !epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e));
	CHECK(epoll_wait(ep, out, 4, 10) == 0);
	CHECK(!pthread_create(&t, 0, poke, &ev));
	CHECK(epoll_wait(ep, out, 4, 10000) == 1 && out[0].data.u32 == 1 && out[0].events == EPOLLIN);
	CHECK(!pthread_join(t, 0));
	uint64_t v;
	CHECK(read(ev, &v, 8) == 8 && !memcmp(&v, "12345678", 8));
	CHECK(epoll_wait(ep, out, 4, 0) == 0);
	CHECK(!epoll_ctl(ep, EPOLL_CTL_DEL, ev, 0) && epoll_ctl(ep, EPOLL_CTL_DEL, ev, 0) == -1 && errno == ENOENT);
	close(ep), close(ev), close(ends[0]), close(ends[1]);
	CHECK(poll(p, 1, 0) == 1 && p[0].revents == POLLNVAL);
}

static void clocks(void) {
	struct timespec a, b, r;
	struct timeval tv;
	for (int i = 0; i < 20000; i++) {
		CHECK(!clock_gettime(CLOCK_MONOTONIC, &a) && !clock_gettime(CLOCK_MONOTONIC, &b));
		CHECK(b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec));
		CHECK(a.tv_nsec >= 0 && a.tv_nsec < 1000000000);
	}
	CHECK(!clock_gettime(CLOCK_REALTIME, &a) && !gettimeofday(&tv, 0));
	CHECK(tv.tv_sec - a.tv_sec <= 1 && time(0) - a.tv_sec <= 1 && a.tv_sec > 1600000000);
	CHECK(!clock_getres(CLOCK_MONOTONIC, &r) && r.tv_sec == 0 && r.tv_nsec <= 10000000);
	CHECK(!clock_gettime(CLOCK_MONOTONIC, &a));
	r = (struct timespec){.tv_nsec = 20000000};
	CHECK(!nanosleep(&r, 0) && !clock_gettime(CLOCK_MONOTONIC, &b));
	CHECK((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec >= 20000000);
	r = b;
	r.tv_nsec += 20000000;
	if (r.tv_nsec >= 1000000000)
		r.tv_sec++, r.tv_nsec -= 1000000000;
	CHECK(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &r, 0) && !clock_gettime(CLOCK_MONOTONIC, &b));
	CHECK(b.tv_sec > r.tv_sec || (b.tv_sec == r.tv_sec && b.tv_nsec >= r.tv_nsec));
	CHECK(!clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a) && !clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a));
	CHECK(clock() != (clock_t)-1);
	r.tv_nsec = 1000000000;
	CHECK(nanosleep(&r, 0) == -1 && errno == EINVAL);
	CHECK(clock_gettime(12345, &a) == -1 && errno == EINVAL);
}

// A guest is one process: what would make another one fails in the way that programs expect.
static void alone(void) {
	CHECK(fork() == -1 && errno == ENOSYS);
	CHECK(execl("/bin/true", "true", (char *)0) == -1);
	CHECK(system("true") == -1 || WEXITSTATUS(system("true")) == 127);
	CHECK(!popen("true", "r"));
	CHECK(getpid() == 1);
	CHECK(kill(2, 0) == -1 && errno == ESRCH);
	struct utsname u;
	CHECK(!uname(&u) && !strcmp(u.sysname, "Linux") && !strcmp(u.machine, "x86_64"));
	CHECK(access("/etc/passwd", F_OK) == -1 && access("/proc/1/environ", F_OK) == -1);
	CHECK(open("/tmp/../../../etc/passwd", O_RDONLY) == -1 && errno == ENOENT);
	CHECK(open("/dev/kvm", O_RDWR) == -1);
	char exe[256];
	CHECK(readlink("/proc/self/exe", exe, sizeof exe) > 0);
}

int main(int argc, char **argv) {
	return run_tests((struct test[]){{"temporary", temporary}, {"pipes", pipes}, {"polls", polls}, {"clocks", clocks},
					 {"alone", alone}, {0}},
			 argc, argv);
}
