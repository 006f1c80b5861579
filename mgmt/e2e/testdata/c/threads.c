// Threads, and what C programs synchronise them with.
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long counter;
static __thread long local = 7;

static void *count(void *arg) {
	CHECK(local == 7);
	local = (long)arg;
	for (int i = 0; i < 2000; i++) {
		pthread_mutex_lock(&lock);
		counter++;
		pthread_mutex_unlock(&lock);
	}
	CHECK(local == (long)arg);
	return (void *)(local * 2);
}

static void mutex(void) {
	enum { N = 16 };
	pthread_t t[N];
	counter = 0;
	for (long i = 0; i < N; i++)
		CHECK(!pthread_create(&t[i], 0, count, (void *)i));
	for (long i = 0; i < N; i++) {
		void *v;
		CHECK(!pthread_join(t[i], &v));
		CHECK((long)v == i * 2);
	}
	CHECK(counter == N * 2000);
}

static void *nothing(void *arg) { return arg; }

// Many threads one after the other: vCPUs and stacks are used again.
static void churn(void) {
	for (long i = 0; i < 2000; i++) {
		pthread_t t;
		void *v;
		CHECK(!pthread_create(&t, 0, nothing, (void *)i));
		CHECK(!pthread_join(t, &v));
		CHECK((long)v == i);
	}
}

static pthread_cond_t full = PTHREAD_COND_INITIALIZER, room = PTHREAD_COND_INITIALIZER;
static int queue[8], head, tail;
static long sum;

static void *producer(void *arg) {
	for (int i = 1; i <= 3000; i++) {
		pthread_mutex_lock(&lock);
		while (head - tail == 8)
			pthread_cond_wait(&room, &lock);
		queue[head++ % 8] = i;
		pthread_cond_signal(&full);
		pthread_mutex_unlock(&lock);
	}
	return arg;
}

static void *consumer(void *arg) {
	for (int i = 1; i <= 3000; i++) {
		pthread_mutex_lock(&lock);
		while (head == tail)
			pthread_cond_wait(&full, &lock);
		sum += queue[tail++ % 8];
		pthread_cond_broadcast(&room);
		pthread_mutex_unlock(&lock);
	}
	return arg;
}

static void condition(void) {
	pthread_t t[6];
	head = tail = sum = 0;
	for (int i = 0; i < 6; i++)
		CHECK(!pthread_create(&t[i], 0, i % 2 ? producer : consumer, 0));
	for (int i = 0; i < 6; i++)
		CHECK(!pthread_join(t[i], 0));
	CHECK(sum == 3L * 3000 * 3001 / 2);
}

static double now(void) {
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void timedwait(void) {
	struct timespec ts;
	double began = now();
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_nsec += 50 * 1000 * 1000;
	if (ts.tv_nsec >= 1000000000)
		ts.tv_sec++, ts.tv_nsec -= 1000000000;
	pthread_mutex_lock(&lock);
	int e;
	while ((e = pthread_cond_timedwait(&full, &lock, &ts)) == 0)
		;
	pthread_mutex_unlock(&lock);
	CHECK(e == ETIMEDOUT);
	CHECK(now() - began >= 0.045);
	pthread_mutexattr_t a;
	pthread_mutex_t m;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&m, &a);
	CHECK(!pthread_mutex_lock(&m));
	CHECK(pthread_mutex_lock(&m) == EDEADLK);
	CHECK(!pthread_mutex_unlock(&m));
	CHECK(pthread_mutex_unlock(&m) == EPERM);
}

static pthread_barrier_t barrier;
static atomic_int arrived;

static void *meet(void *arg) {
	for (int i = 1; i <= 200; i++) {
		atomic_fetch_add(&arrived, 1);
		pthread_barrier_wait(&barrier);
		CHECK(atomic_load(&arrived) == 4 * i);
		pthread_barrier_wait(&barrier);
	}
	return arg;
}

static void barriers(void) {
	pthread_t t[4];
	arrived = 0;
	CHECK(!pthread_barrier_init(&barrier, 0, 4));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], 0, meet, 0));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(t[i], 0));
	CHECK(!pthread_barrier_destroy(&barrier));
}

static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static int pair[2];

static void *readers(void *arg) {
	for (int i = 0; i < 2000; i++) {
		if (arg && i % 4 == 0) {
			pthread_rwlock_wrlock(&rw);
			pair[0]++;
			pair[1]++;
		} else {
			pthread_rwlock_rdlock(&rw);
			CHECK(pair[0] == pair[1]);
		}
		pthread_rwlock_unlock(&rw);
	}
	return 0;
}

static void rwlocks(void) {
	pthread_t t[4];
	for (long i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], 0, readers, (void *)(i & 1)));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(t[i], 0));
	CHECK(pair[0] == 1000);
}

static sem_t ping, pong;

static void *player(void *arg) {
	for (int i = 0; i < 2000; i++) {
		CHECK(!sem_wait(&ping));
		CHECK(!sem_post(&pong));
	}
	return arg;
}

static void semaphores(void) {
	pthread_t t;
	CHECK(!sem_init(&ping, 0, 0) && !sem_init(&pong, 0, 0));
	CHECK(!pthread_create(&t, 0, player, 0));
	for (int i = 0; i < 2000; i++) {
		CHECK(!sem_post(&ping));
		CHECK(!sem_wait(&pong));
	}
	CHECK(!pthread_join(t, 0));
	CHECK(sem_trywait(&pong) == -1 && errno == EAGAIN);
}

static pthread_key_t key;
static atomic_int destroyed, cleaned;

static void destroy(void *p) { atomic_fetch_add(&destroyed, (int)(long)p); }
static void clean(void *p) { atomic_fetch_add(&cleaned, (int)(long)p); }

static void *keyed(void *arg) {
	pthread_setspecific(key, arg);
	pthread_exit(0);
}

static void keys(void) {
	pthread_t t[8];
	CHECK(!pthread_key_create(&key, destroy));
	for (long i = 0; i < 8; i++)
		CHECK(!pthread_create(&t[i], 0, keyed, (void *)(i + 1)));
	for (int i = 0; i < 8; i++)
		CHECK(!pthread_join(t[i], 0));
	CHECK(destroyed == 36);
}

static void *sleeper(void *arg) {
	pthread_cleanup_push(clean, (void *)1);
	for (;;)
		sleep(1000);
	pthread_cleanup_pop(0);
	return arg;
}

static void *spinner(void *arg) {
	volatile long n = 0;
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, 0);
	for (;;)
		n++;
	return arg;
}

// Cancellation works by a signal whose handler looks at the interrupted context, or changes it.
static void cancel(void) {
	for (int i = 0; i < 20; i++) {
		pthread_t t[2];
		void *v;
		CHECK(!pthread_create(&t[0], 0, sleeper, 0));
		CHECK(!pthread_create(&t[1], 0, spinner, 0));
		if (i % 2)
			usleep(2000);
		for (int k = 0; k < 2; k++)
			CHECK(!pthread_cancel(t[k]));
		for (int k = 0; k < 2; k++) {
			CHECK(!pthread_join(t[k], &v));
			CHECK(v == PTHREAD_CANCELED);
		}
	}
	CHECK(cleaned <= 20);
}

static atomic_int loose;

static void *detached(void *arg) {
	atomic_fetch_add(&loose, 1);
	return arg;
}

static void attributes(void) {
	pthread_attr_t a;
	pthread_t t;
	CHECK(!pthread_attr_init(&a));
	CHECK(!pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED));
	CHECK(!pthread_attr_setstacksize(&a, 1 << 20));
	for (int i = 0; i < 100; i++)
		CHECK(!pthread_create(&t, &a, detached, 0));
	for (int i = 0; i < 10000 && loose < 100; i++)
		usleep(1000);
	CHECK(loose == 100);
	cpu_set_t set;
	CHECK(!sched_getaffinity(0, sizeof set, &set));
	CHECK(CPU_COUNT(&set) >= 1 && CPU_COUNT(&set) == sysconf(_SC_NPROCESSORS_ONLN));
	for (int i = 0; i < 1000; i++)
		sched_yield();
}

static void *last(void *arg) {
	usleep(20000);
	printf("all ok\n");
	exit(0);
	return arg;
}

int main(int argc, char **argv) {
	if (argc == 2 && !strcmp(argv[1], "exit")) { // the main thread goes first
		pthread_t t;
		CHECK(!pthread_create(&t, 0, last, 0));
		pthread_exit(0);
	}
	return run_tests((struct test[]){{"mutex", mutex}, {"churn", churn}, {"condition", condition},
					 {"timedwait", timedwait}, {"barriers", barriers}, {"rwlocks", rwlocks},
					 {"semaphores", semaphores}, {"keys", keys}, {"cancel", cancel},
					 {"attributes", attributes}, {0}},
			 argc, argv);
}
