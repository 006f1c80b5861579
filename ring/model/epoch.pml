/*
 * A ring that is started anew, because the driver that served it lied: epochs.
 *
 * One client with one queue, the instances of one driver, of which some lie, and graild. An instance may die at any step,
 * graild as well; what it knew is gone then, and the words in the grant are left. What an honest instance does to ring and log
 * is one step here, since handover.pml takes that apart; it is the words whose order matters.
 * A liar jumps ahead with the used index, completes a head that is none of the queue's, or spoils the log, and does its work besides.
 * Lies that keep all the rules are believed, and are not here: that a request is done which is not, in the first place.
 * Properties:
 *
 *   lost      a request that was offered is completed: the model ends (invalid end state otherwise), and what is
 *             completed was performed (assertion in client)
 *   doubled   no request is completed twice (client), or performed once its owner was told that it is done (host)
 *   late      nothing is performed, and nothing is written to log or rings, for an instance that does not serve the client any more
 *             (host, and OURS in instance)
 *
 * Options:  -DRENEW    graild may have a client start its ring anew without replacing the instance
 *           -DMUTANT_x a mistake that must be found, see model_test.go
 */

#define S     2              /* queue size */
#ifndef N
#define N     2              /* requests */
#endif
#ifndef LIES
#define LIES  1
#endif
#ifndef DEATHS
#define DEATHS 1             /* of instances, beside those that graild ends */
#endif
#ifndef GRAILD
#define GRAILD 1             /* deaths of graild */
#endif
#define PROCS  2
#define WRAP   7             /* indices wrap: 16 bits in the code, 3 bits here */
#define BASE   6             /* where they begin, so that they wrap soon */
#define JUMP   (S + 1)
#define EPOCHS 3             /* epochs wrap as well: 32 bits in the code */
#define NOBODY 255

/* The queue: ring/layout.go. desc[h] is the request that the chain at head h describes, from 1 on; 0: cleared. */
byte desc[S];
byte availIdx = BASE, availRing[S];
byte usedIdx = BASE, usedRing[S];

/* The in-flight log: ring/inflight.go. The version is 0 in a log that was never used, and UNKNOWN in one that was spoilt. */
#define UNKNOWN 2
byte logVersion, logUsedIdx;
bool logInflight[S];

/* The words of the grant: hv/abi/rings.go. */
byte epoch, swept;      /* WordEpoch, WordSwept: the host's */
byte ack;               /* WordAck: the client's */
bool complaint;         /* WordComplaint: the client's */

/* Processes of the driver. */
mtype = { NONE, RUN, DYING, DEAD };
mtype st[PROCS] = NONE;
bool attach[PROCS];     /* it serves the client, or is to */
bool detach[PROCS];     /* it is to let go of it: hv.OpDetach */
bool liar[PROCS];
byte io[PROCS * S];     /* the request that the kernel performs for it at each head, 0: none */

bool grailDies;

/* What the properties are about. */
byte owner = NOBODY;    /* the instance that serves the client */
bool landed[N + 1];     /* performed at least once */
bool told[N + 1];       /* its owner was told that it is done */

/* ---------------------------------------------------------------- the client: hv/guest/queue.go, hv/guest/epoch.go */

proctype client() {
	byte now, published = BASE, lastUsed = BASE, h, r, next = 1, left = N;
	bool failed;            /* ring.Driver.Fail: it broke a rule */
	byte slots[S];          /* the request outstanding at each head */

	do
	/* queue.start */
	:: atomic { next <= N && epoch == now && !failed && (!slots[0] || !slots[1]) ->
			if :: !slots[0] -> h = 0 :: !slots[1] -> h = 1 fi;
			slots[h] = next; desc[h] = next; availRing[published % S] = h; next++;
			published = (published + 1) & WRAP; availIdx = published; h = 0
		}

	/* queue.take, Driver.Used, epoch.complain */
	:: atomic { !failed && usedIdx != lastUsed ->
			if
			:: ((usedIdx - lastUsed) & WRAP) > ((published - lastUsed) & WRAP) -> failed = true; complaint = true
			:: else ->
				do
				:: lastUsed != usedIdx ->
					h = usedRing[lastUsed % S];
					if
					:: h >= S -> failed = true; complaint = true; break
					:: h < S && slots[h] == 0 -> failed = true; complaint = true; break
					:: h < S && slots[h] != 0 ->
						r = slots[h];
						assert(landed[r]);      /* lost: completed and not performed */
						assert(!told[r]);       /* doubled */
						told[r] = true; slots[h] = 0; left--; lastUsed = (lastUsed + 1) & WRAP
					fi
				:: else -> break
				od
			fi;
			h = 0; r = 0
		}

	/* epoch.over, epoch.begin, Driver.Restart: what is outstanding is offered again. */
	:: epoch != now ->
#ifdef MUTANT_ACK
		ack = epoch;
#endif
		atomic {
			now = epoch; failed = false;
#ifdef MUTANT_BASE
			published = BASE;
#else
			published = usedIdx;
#endif
			lastUsed = published; desc[0] = 0; desc[1] = 0; availIdx = published }
		atomic {
			if :: slots[0] -> desc[0] = slots[0]; availRing[published % S] = 0; published = (published + 1) & WRAP :: else fi;
			if :: slots[1] -> desc[1] = slots[1]; availRing[published % S] = 1; published = (published + 1) & WRAP :: else fi
		}
		availIdx = published;
		complaint = false;
#ifndef MUTANT_ACK
		ack = now
#endif

	:: atomic { left == 0 -> break }
	od
}

/* ------------------------------------------------------------ an instance: ring/device.go, drivervms/blk/serve, drivervms/program/lie.go */

#define TODO 1 /* in flight when the predecessor died: Device.replay */
#define BUSY 2 /* in the kernel's hands */
#define BACK(h) (state[h] == BUSY && !io[g * S + h])
#define IDLE(h) (state[h] == 0)

#define OURS assert(owner == g) /* precedes every store to log and rings */

#define POP(h) \
	:: atomic { state[h] == TODO -> assert(desc[h] != 0); state[h] = BUSY; io[g * S + h] = desc[h] }
#define PUSH(h) \
	:: atomic { BACK(h) -> OURS; usedRing[used % S] = h; used = (used + 1) & WRAP; usedIdx = used; \
		logInflight[h] = false; logUsedIdx = used; state[h] = 0 }

byte lies = LIES;

proctype instance(byte g) {
	byte lastAvail, used, h;
	byte state[S];          /* of each head */

again:
endNone:
	st[g] != NONE;
endSpare: {
		/* Server.Attach, NewDevice, Inflight.Recover. The log's own index is the used ring's: both change in one step here. */
		atomic { attach[g] ->
			owner = g; used = usedIdx;
			if
			:: logVersion == 0 -> logVersion = 1; logUsedIdx = used; lastAvail = used /* graild's LastAvail: client.offer */
			:: else ->
				assert(logVersion == 1 && logUsedIdx == used);  /* ErrLog */
				lastAvail = used;
				if :: logInflight[0] -> state[0] = TODO; lastAvail = (lastAvail + 1) & WRAP :: else fi;
				if :: logInflight[1] -> state[1] = TODO; lastAvail = (lastAvail + 1) & WRAP :: else fi
			fi
		};
endServing:	do
		/* Device.Pop: what the log held comes first. */
		POP(0) POP(1)
		/* Device.Pop: the next new one; Inflight.Begin. */
		:: atomic { state[0] != TODO && state[1] != TODO && !detach[g] && lastAvail != availIdx ->
				assert(((availIdx - lastAvail) & WRAP) <= S);   /* ErrPeerIndex */
				h = availRing[lastAvail % S];
				assert(IDLE(h) && desc[h] != 0);                /* ErrPeerHead, ErrPeerChain */
				OURS; logInflight[h] = true; state[h] = BUSY; io[g * S + h] = desc[h]; lastAvail = (lastAvail + 1) & WRAP; h = 0 }
		/* Device.Push, Device.Publish, Inflight.Complete and Commit */
		PUSH(0) PUSH(1)
		/* program.lie */
		:: atomic { lies > 0 ->
				lies--; liar[g] = true; OURS;
				if
				:: usedIdx = (used + JUMP) & WRAP
				:: usedRing[used % S] = S; usedIdx = (used + 1) & WRAP
				:: logVersion = UNKNOWN
				:: logUsedIdx = (logUsedIdx - JUMP) & WRAP
				fi }
		/* Server.Detach: nothing is in flight after it. */
		:: atomic { detach[g] && IDLE(0) && IDLE(1) -> attach[g] = false; detach[g] = false; owner = NOBODY } goto endSpare
		od
	} unless { st[g] == DEAD };
	atomic { st[g] = NONE; attach[g] = false; detach[g] = false; liar[g] = false;
		lastAvail = 0; used = 0; h = 0; state[0] = 0; state[1] = 0;
		if :: owner == g -> owner = NOBODY :: else fi }
	goto again
}

/* ----------------------------------------------- the host: its kernel, and what may go wrong at any moment */

#define LAND(g, h) \
	:: atomic { io[g * S + h] != 0 -> \
		assert(!told[io[g * S + h]]);           /* doubled: its owner may have built on it */ \
		assert(owner == g);                     /* late */ \
		landed[io[g * S + h]] = true; io[g * S + h] = 0 }
#define END(g) \
	:: atomic { deaths > 0 && st[g] == RUN -> st[g] = DYING; deaths-- } \
	:: atomic { st[g] == DYING -> st[g] = DEAD; io[g * S] = 0; io[g * S + 1] = 0 }

proctype host() {
	byte deaths = DEATHS, graildDeaths = GRAILD;
endHost:
	do
	LAND(0, 0) LAND(0, 1) LAND(1, 0) LAND(1, 1)
	END(0) END(1)
	:: atomic { graildDeaths > 0 && !grailDies -> graildDeaths--; grailDies = true }
	od
}

/* ---------------------------------------------------------------------------- graild: mgmt/daemon/epoch.go, one driver */

/* client.broken: ring.Recoverable, and the complaint */
#define FLIGHT (logInflight[0] + logInflight[1])
#define LEFT   ((availIdx - usedIdx) & WRAP)
#define BROKEN (complaint || LEFT > S || usedRing[0] >= S || usedRing[1] >= S || \
	logVersion > 1 || logVersion == 1 && (logUsedIdx != usedIdx || FLIGHT > LEFT))
#define AWAITED (ack != epoch)
#ifdef MUTANT_TRUST
#define ANEW lied
#else
#define ANEW (lied || BROKEN)
#endif

/* client.sweep: the index stays. */
#define SWEEP \
	atomic { usedRing[0] = 0; usedRing[1] = 0 }; \
	atomic { logVersion = 0; logUsedIdx = 0; logInflight[0] = false; logInflight[1] = false }

#ifdef MUTANT_KEPT
#define KEPT memory     /* it remembers by itself alone for which epoch it has swept */
#else
#define KEPT swept
#endif

proctype graild() {
	byte inst = NOBODY, memory = NOBODY;
	bool lied;              /* client.lied */
again:
	{
		/* Daemon.adopt: others than the one taken over are ended. */
		atomic {
			if
			:: st[0] == RUN -> inst = 0; if :: st[1] == RUN -> st[1] = DYING :: else fi
			:: else -> if :: st[1] == RUN -> inst = 1 :: else -> inst = NOBODY fi
			fi
		}
endServe:	do
		/* driver.next */
#ifdef MUTANT_REAP
		:: atomic { inst == NOBODY && st[0] == NONE -> inst = 0; st[0] = RUN }
		:: atomic { inst == NOBODY && st[0] != NONE && st[1] == NONE -> inst = 1; st[1] = RUN }
#else
		:: atomic { inst == NOBODY && st[0] == NONE && st[1] == NONE -> if :: inst = 0 :: inst = 1 fi; st[inst] = RUN }
#endif
		/* driver.bringUp: breakEpochs, mend, awaitEpochs or attachLater, driverInstance.attach */
		:: inst != NOBODY && st[inst] == RUN && !attach[inst] ->
			if
			:: atomic { !AWAITED && ANEW -> epoch = (epoch + 1) & EPOCHS }
			:: atomic { AWAITED || !(ANEW) -> skip }
			fi;
			lied = false;
#ifdef MUTANT_EARLY
			if :: KEPT != epoch -> SWEEP; atomic { swept = epoch; memory = epoch } :: KEPT == epoch fi;
#endif
endAside:		if               /* a client that wants nothing need not answer */
#ifndef MUTANT_WAIT
			:: !AWAITED
#else
			:: true
#endif
			:: st[inst] != RUN -> goto gone
			fi;
			if :: KEPT != epoch -> SWEEP; atomic { swept = epoch; memory = epoch } :: KEPT == epoch fi;
			if
			:: atomic { st[inst] == RUN -> attach[inst] = true }
			:: st[inst] != RUN
			fi;
gone:			skip
		/* auditor, declareLiar: it has found out, or the client complains; driver.serve, instance.end */
		:: atomic { inst != NOBODY && st[inst] == RUN && attach[inst] && (complaint || liar[inst]) ->
#ifdef MUTANT_EPOCH
			epoch = (epoch + 1) & EPOCHS;
#endif
			lied = true; st[inst] = DYING }
#ifdef RENEW
		/* driver.renew: the client is not believed any more */
		:: atomic { inst != NOBODY && st[inst] == RUN && attach[inst] && complaint -> detach[inst] = true }
#ifndef MUTANT_RENEW
			if
			:: !attach[inst]
			:: st[inst] != RUN
			fi;
#endif
			if
			:: atomic { st[inst] == RUN && !AWAITED -> epoch = (epoch + 1) & EPOCHS }
			:: st[inst] != RUN || AWAITED
			fi
#endif
		/* driver.serve: it has ended */
		:: atomic { inst != NOBODY && st[inst] != RUN ->
			if :: st[inst] == NONE || liar[inst] == false -> skip :: else -> lied = true fi;
			inst = NOBODY }
		od
	} unless { grailDies };
	atomic { grailDies = false; inst = NOBODY; memory = NOBODY; lied = false }
	goto again
}

init {
	atomic {
		run client(); run host(); run graild(); run instance(0); run instance(1)
	}
}
