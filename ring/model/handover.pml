/*
 * A queue's rings, its in-flight log, and their hand-over from one driver VM to the next.
 *
 * One client with one queue, the instances of one driver (at most three processes at once: one that is dying, one that
 * serves, a spare), and graild. An instance may die between any two of its stores, graild as well. What it writes and
 * what the host's kernel does on its behalf go on until the process is reaped.
 *
 * Each atomic step is at most one store that others can see. The comments name the code that it mirrors.
 * Properties:
 *
 *   lost      a request that was offered is completed: the model ends (invalid end state otherwise), and what is
 *             completed was performed (assertion in client)
 *   doubled   no request is completed twice (client) or performed once its completion is visible (host): the client may
 *             have built on it since
 *   late      no device operation lands, and nothing is written to log or rings, for an instance whose successor has
 *             taken over (host, and OURS in instance)
 *
 * Options:  -DLOSSY    a few rings of doorbells get lost; the client looks again after a time
 *           -DMUTANT_x a mistake that must be found, see model_test.go
 */

#define S     2              /* queue size */
#ifndef N
#define N     3              /* requests */
#endif
#ifndef DEATHS
#define DEATHS 2             /* of instances */
#endif
#ifndef GRAILD
#define GRAILD 1             /* deaths of graild */
#endif
#define PROCS 3
#define WRAP  7              /* indices wrap: 16 bits in the code, 3 bits here */
#define BASE  6              /* where they begin, so that they wrap soon */
#define NOBODY 255

/* -DGRAILD_ONLY makes room for deaths of graild: steps that are checked without it are taken at once (STEPS), nobody
   sleeps, so that there are no doorbells, and a dying instance leaves only its device operations behind. */
#ifdef GRAILD_ONLY
#define STEPS atomic
#define ENDS(g) (st[g] == DYING || st[g] == DEAD)
#define ASKED(event, new, old) true
#else
#define STEPS
#define ENDS(g) (st[g] == DEAD)
#define ASKED(event, new, old) NEED(event, new, old)
#endif

/* ring/desc.go needEvent */
#define NEED(event, new, old) (((new - event - 1) & WRAP) < ((new - old) & WRAP))

/* The queue: ring/layout.go. desc[h] is the request that the chain at head h describes, from 1 on. */
byte desc[S];
byte availIdx = BASE, availRing[S], availEvent = BASE; /* availEvent lies in the used ring */
byte usedIdx = BASE, usedRing[S], usedEvent = BASE - 1; /* usedEvent lies in the available ring */
bool kick, call;                                       /* doorbells: eventfd counters above 0 */

/* The in-flight log: ring/inflight.go, Format. */
bool logVersion;
byte logLastBatch, logUsedIdx;
bool logInflight[S];
byte logNext[S], logCounter[S];

/* Processes of the driver. */
mtype = { NONE, RUN, DYING, DEAD };
mtype st[PROCS] = NONE;
byte age[PROCS];        /* the younger the more: the number of the launch */
bool attach[PROCS];     /* it was told to serve the client: hv.OpAttach */
bool served[PROCS];     /* it does, and has said so: hv.Status.Attached */
byte io[PROCS * S];     /* the request that the kernel performs for it at each head, 0: none */

/* graild's memory, and what of it is on disk: store.Driver.Process. */
byte recorded = NOBODY, onDisk = NOBODY;
bool grailDies;

/* What the properties are about. */
byte owner = NOBODY;    /* the instance that took over last */
bool landed[N + 1];     /* performed at least once */
bool visible[N + 1];    /* its completion is published */

#ifdef GRAILD_ONLY
#define RING(bell) skip
#elif defined(LOSSY)
byte losses = 1;
#define RING(bell) if :: bell = true :: losses > 0 -> losses-- fi
#else
#define RING(bell) bell = true
#endif

/* ---------------------------------------------------------------- the client: ring/driver.go, hv/guest/queue.go */

proctype client() {
	byte published = BASE, lastUsed = BASE, old, idx, h, r;
	byte next = 1;          /* the next request */
	byte slots[S];          /* Driver.slots: the request outstanding at each head */

	do
	/* Driver.Add, once or more, of which nothing is visible before Driver.Publish. */
	:: atomic { next <= N && (!slots[0] || !slots[1]) ->
			old = published;
			do
			:: next <= N && (!slots[0] || !slots[1]) ->
				if :: !slots[0] -> h = 0 :: !slots[1] -> h = 1 fi;
				slots[h] = next; desc[h] = next; availRing[published % S] = h;
				next++; published = (published + 1) & WRAP; h = 0
			:: published != old -> break
			od;
			availIdx = published
		}
		/* fence */
		if
		:: atomic { ASKED(availEvent, published, old) -> old = 0; RING(kick) }
		:: atomic { !ASKED(availEvent, published, old) -> old = 0 }
		fi

	/* Driver.Used: one load of the index, bounded. */
	:: atomic { usedIdx != lastUsed ->
			assert(((usedIdx - lastUsed) & WRAP) <= ((published - lastUsed) & WRAP));   /* ErrPeerIndex */
			idx = usedIdx;
			do
			:: lastUsed != idx ->
				h = usedRing[lastUsed % S]; r = slots[h];
				assert(r != 0);         /* doubled: ErrPeerHead */
				assert(landed[r]);      /* lost: completed and not performed */
				slots[h] = 0; lastUsed = (lastUsed + 1) & WRAP
			:: else -> idx = 0; h = 0; r = 0; break
			od
		}

	/* guest.queue.reap: nothing is there, so wait for the doorbell. */
#ifndef GRAILD_ONLY
	/* Poller.sleep, Driver.Arm, Driver.Disarm */
	:: atomic { published != lastUsed && usedIdx == lastUsed -> usedEvent = lastUsed }
		/* fence, then the re-check */
		if
		:: usedIdx == lastUsed ->
			if
			:: atomic { call -> call = false }
#if defined(LOSSY) && !defined(MUTANT_LOOK)
			:: atomic { timeout -> RING(kick) }     /* rekickAfter: the timed look at both rings */
#endif
			fi
		:: usedIdx != lastUsed
		fi;
		usedEvent = (lastUsed - 1) & WRAP
#endif

	:: atomic { next > N && published == lastUsed -> break }
	od
}

/* ------------------------------------------------------------ an instance: ring/device.go, drivervms/blk/serve */

#define BUSY   1 /* popped, and in the kernel's hands: Device.Do */
#define PUSHED 2
#define BACK(h) (state[h] == BUSY && !io[g * S + h])

#define OURS assert(owner == g) /* precedes every store to log and rings */

/* Inflight.Begin, the mark; it makes the request the instance's. */
#ifdef MUTANT_MARK
#define BEGIN skip
#else
#define BEGIN OURS; logInflight[h] = true
#endif

proctype instance(byte g) {
	byte lastAvail, used, published, old, h, i, n, counter;
	byte replay[S], nreplay;
	byte state[S];          /* of each head */
	byte batch[S], nbatch;
	bool done[S];

again:
endNone:
	atomic { st[g] != NONE };
endSpare: {
		/* Server.Attach: a new client. A spare waits here. */
		atomic { attach[g] -> owner = g; used = usedIdx };

		/* NewDevice, Inflight.Recover */
		STEPS { if
		:: !logVersion ->
			atomic { OURS; logUsedIdx = used };
			atomic { OURS; logVersion = true; lastAvail = BASE } /* fresh: graild's LastAvail */
		:: else ->
			atomic {
				n = (used - logUsedIdx) & WRAP;
				assert(n <= S);                 /* ErrLog */
				/* Inflight.lastBatch */
				i = logLastBatch;
				do
				:: n > 0 -> assert(i < S && !done[i]); done[i] = true; i = logNext[i]; n--
				:: else -> break
				od;
				/* the live ones, oldest first */
#ifndef MUTANT_REPLAY
				if :: logInflight[0] && !done[0] -> replay[nreplay] = 0; nreplay++ :: else fi;
				if :: logInflight[1] && !done[1] -> replay[nreplay] = 1; nreplay++ :: else fi;
				if
				:: nreplay == 2 && logCounter[1] < logCounter[0] -> replay[0] = 1; replay[1] = 0
				:: else
				fi;
#endif
				if
				:: nreplay > 0 -> counter = logCounter[replay[nreplay - 1]] + 1
				:: else
				fi;
				assert(nreplay < 2 || desc[replay[0]] < desc[replay[1]]); /* in the order in which they were offered */
				i = 0
			}
#ifdef MUTANT_RECOVER
			atomic { OURS; logUsedIdx = used }; /* before the marks */
#endif
			if
			:: atomic { done[0] -> OURS; done[0] = false; logInflight[0] = false }
			:: atomic { !done[0] -> skip }
			fi;
			if
			:: atomic { done[1] -> OURS; done[1] = false; logInflight[1] = false }
			:: atomic { !done[1] -> skip }
			fi;
			atomic { OURS; logUsedIdx = used; lastAvail = (used + nreplay) & WRAP }
		fi };
		published = used;
#ifndef MUTANT_BELL
		RING(call);             /* Server.Attach: the predecessor may have died between completion and doorbell */
#endif
		served[g] = true;       /* MsgDone */

endServing:	do
		/* Device.Pop: what the log held comes first. */
		:: atomic { nreplay > 0 -> h = replay[0]; replay[0] = replay[1]; replay[1] = 0; nreplay--;
				state[h] = BUSY; io[g * S + h] = desc[h]; h = 0 }

		/* Device.Pop: the next new one. */
		:: STEPS { atomic { nreplay == 0 && lastAvail != availIdx ->
				h = availRing[lastAvail % S]; assert(!state[h]) }; /* ErrPeerHead */
			atomic { OURS; logCounter[h] = counter; counter++; BEGIN; state[h] = BUSY; io[g * S + h] = desc[h]; lastAvail = (lastAvail + 1) & WRAP; h = 0 } }

		/* Server.finish, Device.Push, Inflight.Complete: in any order, while others are in the kernel (lane). */
		:: STEPS { atomic { BACK(0) || BACK(1) ->
				if :: BACK(0) -> h = 0 :: BACK(1) -> h = 1 fi;
				OURS; usedRing[used % S] = h; used = (used + 1) & WRAP; state[h] = PUSHED; batch[nbatch] = h; nbatch++;
#ifdef MUTANT_LINK
			}
#else
				logNext[h] = logLastBatch }
#endif
			atomic { OURS; logLastBatch = h; h = 0 }
			}

		/* Device.Publish, Inflight.Commit */
		:: STEPS { atomic { nbatch > 0 -> old = published; published = used }
#ifdef MUTANT_ORDER
			do
			:: atomic { h < nbatch -> OURS; logInflight[batch[h]] = false; h++ }
			:: atomic { h == nbatch -> h = 0; break }
			od;
#endif
			atomic {
				OURS; usedIdx = used;
				do
				:: h < nbatch -> visible[desc[batch[h]]] = true; h++
				:: else -> h = 0; break
				od
			}
#ifndef MUTANT_ORDER
#ifdef MUTANT_COMMIT
			atomic { OURS; logUsedIdx = used }
#endif
			do
			:: atomic { h < nbatch -> OURS; logInflight[batch[h]] = false; state[batch[h]] = 0; batch[h] = 0; h++ }
			:: atomic { h == nbatch -> h = 0; nbatch = 0; break }
			od;
#else
			atomic { state[batch[0]] = 0; if :: nbatch == 2 -> state[batch[1]] = 0 :: else fi;
				batch[0] = 0; batch[1] = 0; nbatch = 0 }
#endif
			atomic { OURS; logUsedIdx = used } };
			/* fence */
			if
			:: atomic { ASKED(usedEvent, used, old) -> old = 0 }; RING(call)
			:: atomic { !ASKED(usedEvent, used, old) -> old = 0 }
			fi

#ifndef GRAILD_ONLY
		/* Poller.sleep: Device.Arm, SysWait, Device.Disarm. */
		:: atomic { nreplay == 0 && !state[0] && !state[1] && lastAvail == availIdx -> OURS; availEvent = lastAvail }
			if
			:: lastAvail == availIdx ->
endIdle:			atomic { kick -> kick = false }
			:: lastAvail != availIdx
			fi;
			atomic { OURS; availEvent = (lastAvail - 1) & WRAP }
#endif
		od
	} unless { ENDS(g) };
	atomic { st[g] == DEAD -> /* reaped; its place may be used again, its process number not */
		st[g] = NONE; attach[g] = false; served[g] = false; age[g] = 0;
		if :: recorded == g -> recorded = NOBODY :: else fi;
		if :: onDisk == g -> onDisk = NOBODY :: else fi;
		lastAvail = 0; used = 0; published = 0; old = 0; h = 0; i = 0; n = 0; counter = 0;
		replay[0] = 0; replay[1] = 0; nreplay = 0; state[0] = 0; state[1] = 0;
		batch[0] = 0; batch[1] = 0; nbatch = 0; done[0] = false; done[1] = false
	}
	goto again
}

/* ----------------------------------------------- the host: its kernel, and what may go wrong at any moment */

#define LAND(g, h) \
	:: atomic { io[g * S + h] != 0 -> \
		assert(!visible[io[g * S + h]]);        /* doubled: it was completed already */ \
		assert(owner == g);                     /* late: its successor has taken over */ \
		landed[io[g * S + h]] = true; io[g * S + h] = 0 } \
	FAIL(g, h)
/* On engine process, the driver outlives its grailvm by an instant, in which its calls fail: guest/device.go mustPerform
   does not let it take them for done. */
#ifdef MUTANT_PERFORM
#define FAIL(g, h) :: atomic { io[g * S + h] != 0 && st[g] == DYING -> io[g * S + h] = 0 }
#else
#define FAIL(g, h)
#endif

/* A process has ended when each of its threads has left the kernel: what it began there has landed by then, or never will. */
#define END(g) \
	:: atomic { deaths > 0 && st[g] == RUN -> st[g] = DYING; deaths-- } \
	:: atomic { st[g] == DYING -> st[g] = DEAD; io[g * S] = 0; io[g * S + 1] = 0 }

proctype host() {
	byte deaths = DEATHS, graildDeaths = GRAILD;
endHost:
	do
	LAND(0, 0) LAND(0, 1) LAND(1, 0) LAND(1, 1) LAND(2, 0) LAND(2, 1)
	END(0) END(1) END(2)
	:: atomic { graildDeaths > 0 && !grailDies -> graildDeaths--; grailDies = true }
	:: atomic { recorded != onDisk && recorded != NOBODY -> onDisk = recorded } /* store.PutDriverLater */
	od
}

/* ---------------------------------------------------------------------------- graild: mgmt/daemon, one driver */

/* What adopt's scan finds. */
#ifdef MUTANT_SCAN
#define FOUND(g) (st[g] == RUN)         /* a process whose first thread has ended has no command line any more */
#else
#define FOUND(g) (st[g] != NONE)
#endif
#define OLDEST(g) (FOUND(g) && (!FOUND(0) || age[g] <= age[0]) && (!FOUND(1) || age[g] <= age[1]) && (!FOUND(2) || age[g] <= age[2]))

/* launchDriver */
#define LAUNCH(into) atomic { \
	if :: st[0] == NONE -> into = 0 :: else -> if :: st[1] == NONE -> into = 1 :: else -> st[2] == NONE; into = 2 fi fi; \
	st[into] = RUN; age[into] = 1; \
	if :: age[0] >= age[into] && into != 0 -> age[into] = age[0] + 1 :: else fi; \
	if :: age[1] >= age[into] && into != 1 -> age[into] = age[1] + 1 :: else fi; \
	if :: age[2] >= age[into] && into != 2 -> age[into] = age[2] + 1 :: else fi }

proctype graild() {
	byte inst = NOBODY, spare = NOBODY;
again:
	{
		/* Daemon.adopt, take: the recorded process, or else the oldest; others are spares, and are ended. */
		atomic {
			if
			:: onDisk != NOBODY && FOUND(onDisk) -> inst = onDisk
			:: else ->
				if
				:: OLDEST(0) -> inst = 0
				:: OLDEST(1) -> inst = 1
				:: OLDEST(2) -> inst = 2
				:: else -> inst = NOBODY
				fi
			fi
		}
		/* endStray waits for at most 5 s, so nothing may depend on that: it does not wait at all here. */
		atomic {
			if :: inst != 0 && st[0] == RUN -> st[0] = DYING :: else fi;
			if :: inst != 1 && st[1] == RUN -> st[1] = DYING :: else fi;
			if :: inst != 2 && st[2] == RUN -> st[2] = DYING :: else fi
		}
		if
		:: atomic { inst != NOBODY && st[inst] == RUN -> recorded = inst }
		:: atomic { inst != NOBODY && st[inst] == DYING }; st[inst] == NONE; inst = NOBODY /* it answers nothing: instance.end */
		:: inst != NOBODY && st[inst] == NONE -> inst = NOBODY
		:: inst == NOBODY -> skip
		fi;
		if
		:: inst == NOBODY ->
#ifndef MUTANT_LOCK
			/* driver.reopen: the lock of the backing file is free when every process that had it is gone */
			atomic { st[0] == NONE && st[1] == NONE && st[2] == NONE };
#endif
		:: else
		fi;

endServe:	do
		:: inst == NOBODY ->
			/* driver.next, takeSpare: a spare that has died is not taken. */
			if
			:: atomic { spare != NOBODY && st[spare] != NONE -> inst = spare; spare = NOBODY; recorded = inst }
			:: atomic { spare == NOBODY || st[spare] == NONE -> spare = NOBODY; LAUNCH(inst); recorded = inst }
			fi
		/* driver.bringUp, driver.keepServed, driverInstance.attach */
		:: atomic { inst != NOBODY && st[inst] == RUN && !attach[inst] -> attach[inst] = true }
#ifndef MUTANT_BELL
			if
			:: atomic { served[inst] -> RING(call) }; RING(kick)
			:: st[inst] != RUN
			fi
#endif
#ifndef NOSPARE
		/* prepareSpare */
		:: inst != NOBODY && spare == NOBODY && attach[inst] -> LAUNCH(spare)
#endif
		/* driver.serve: it has ended, or is declared hung; instance.end */
		:: inst != NOBODY && st[inst] != RUN ->
#ifndef MUTANT_REAP
			st[inst] == NONE;
#endif
			inst = NOBODY
		od
	} unless { grailDies };
	atomic { grailDies = false; inst = NOBODY; spare = NOBODY; recorded = NOBODY }
	goto again
}

init {
	atomic {
		run client(); run host(); run graild(); run instance(0); run instance(1); run instance(2)
	}
}
