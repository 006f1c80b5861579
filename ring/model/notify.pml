/*
 * The suppression of notifications on one queue: neither side sleeps while the other has left it something.
 *
 * Both sides poll, spin or sleep as they like, for ever, in batches of any size; indices wrap. No doorbell is lost here and no side
 * looks at a clock, so a lost wake-up is a deadlock, which is an invalid end state. (handover.pml has lost doorbells.)
 *
 * Each atomic step is at most one store that the other side can see. Options:
 *
 *   -DFLAGS    without FeatureEventIdx: flags in place of event indices
 *   -DHOST     the Poller drains a doorbell before the next sleep and not when it wakes up: Poller.sleep without PollerConfig.Poll
 *   -DMUTANT_x a mistake that must be found, see model_test.go
 */

#define S    2          /* queue size */
#define WRAP 7          /* indices wrap: 16 bits in the code, 3 bits here */

byte availIdx, usedIdx;         /* published */
byte availEvent, usedEvent = WRAP;
bool availQuiet, usedQuiet;     /* VIRTQ_USED_F_NO_NOTIFY of kicks, VIRTQ_AVAIL_F_NO_INTERRUPT of calls */
bool kick, call;                /* doorbells: eventfd counters above 0 */

/* ring/desc.go needEvent: moving the index from old to new passes event. */
#ifdef MUTANT_EVENT
#define NEED(event, new, old) (new == ((event + 1) & WRAP))     /* forgets that a batch may jump over it */
#else
#define NEED(event, new, old) (((new - event - 1) & WRAP) < ((new - old) & WRAP))
#endif

#ifdef FLAGS
#define ASKED(event, quiet, new, old) (!quiet)
#define ARM(event, quiet, at)    quiet = false
#define DISARM(event, quiet, at) quiet = true
#else
#define ASKED(event, quiet, new, old) NEED(event, new, old)
#define ARM(event, quiet, at)    event = at
#define DISARM(event, quiet, at) event = (at - 1) & WRAP
#endif

/* Driver.Publish, Device.Publish: the index, a fence, the peer's wish. */
#ifdef MUTANT_FENCE
#define PUBLISH(index, mine, event, quiet, bell) \
	want = ASKED(event, quiet, mine, index);        /* the load overtakes the store */ \
	index = mine; \
	if :: atomic { want -> want = false; bell = true } :: atomic { !want } fi
#else
#define PUBLISH(index, mine, event, quiet, bell) \
	atomic { old = index; index = mine }; \
	if \
	:: atomic { ASKED(event, quiet, mine, old) -> old = 0 }; bell = true \
	:: atomic { !ASKED(event, quiet, mine, old) -> old = 0 } \
	fi
#endif

/* Poller.sleep on the host drains what collect has noted (rung) before it arms; in a guest, SysWait drains what it reports. */
#if defined(HOST) && defined(MUTANT_DRAIN)
#define BEFORE(bell) skip
#define AFTER(bell)  if :: rung -> atomic { rung = false; bell = false } :: !rung fi   /* swallows a ring that came since */
#define WOKEN(bell)  bell -> rung = true
#elif defined(HOST)
#define BEFORE(bell) if :: rung -> atomic { rung = false; bell = false } :: !rung fi
#define AFTER(bell)  skip
#define WOKEN(bell)  bell -> rung = true
#else
#define BEFORE(bell) skip
#define AFTER(bell)  skip
#define WOKEN(bell)  bell -> bell = false
#endif

/* Poller.sleep, with Arm of the side whose next index is at: the wish, a fence, the re-check of the peer's index. */
#ifdef MUTANT_CHECK
#define NOTHING(index, at) true
#else
#define NOTHING(index, at) (index == at)
#endif
#define SLEEP(event, quiet, at, index, bell) \
	BEFORE(bell); \
	ARM(event, quiet, at); \
	if \
	:: NOTHING(index, at) -> AFTER(bell); atomic { WOKEN(bell) } \
	:: !NOTHING(index, at) \
	fi; \
	DISARM(event, quiet, at)

/* ring/driver.go */
active proctype driver() {
	byte added, lastUsed, old;
	bool rung, want;
	do
	/* Driver.Add, any number of times, then Driver.Publish */
	:: ((added - lastUsed) & WRAP) < S -> added = (added + 1) & WRAP;
		if :: ((added - lastUsed) & WRAP) < S -> added = (added + 1) & WRAP :: true fi;
		PUBLISH(availIdx, added, availEvent, availQuiet, kick)
	/* Driver.Used */
	:: usedIdx != lastUsed -> lastUsed = (lastUsed + 1) & WRAP
	:: added != lastUsed && usedIdx == lastUsed -> SLEEP(usedEvent, usedQuiet, lastUsed, usedIdx, call)
	od
}

/* ring/device.go */
active proctype device() {
	byte lastAvail, used, old;
	bool rung, want;
	do
	/* Device.Pop */
	:: availIdx != lastAvail -> lastAvail = (lastAvail + 1) & WRAP
	/* Device.Push, of some or of all, then Device.Publish */
	:: used != lastAvail -> used = (used + 1) & WRAP;
		if :: used != lastAvail -> used = (used + 1) & WRAP :: true fi;
		PUBLISH(usedIdx, used, usedEvent, usedQuiet, call)
	:: used == lastAvail && availIdx == lastAvail -> SLEEP(availEvent, availQuiet, lastAvail, availIdx, kick)
	od
}
