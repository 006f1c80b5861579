package reincarnation

import "time"

// DefaultPeriod is the heartbeat period of a driver that asks for no other.
const DefaultPeriod = 50 * time.Millisecond

// MinPeriod is the shortest heartbeat period: below it, the host's scheduler decides.
const MinPeriod = 10 * time.Millisecond

// MaxPeriod is the longest.
const MaxPeriod = time.Minute

// samplesPerPeriod is how often a driver is looked at in one period.
const samplesPerPeriod = 5

// Sample is one look at a driver. Beat and Pending come from memory that guests write: they are compared, and
// nothing else is done with them.
type Sample struct {
	Beat    uint64 // abi.StatusBeat
	Busy    bool   // the host is performing device calls for it
	Pending bool   // a ring has requests that are not completed
}

// Verdict is what a sample means.
type Verdict int

// The verdicts.
const (
	Alive   Verdict = iota // nothing to do
	Suspect                // ring the driver's doorbells once: an idle driver that missed nothing wakes up and beats
	Hung                   // it does not beat although it was told of pending work
)

// Heartbeat watches one driver instance. The zero value with a Period is ready for use.
//
// Pending work alone does not make a silent driver dead: a client may have published a request without ringing
// its doorbell, out of malice even. So before the verdict the driver is rung once, and whoever wakes up and beats is
// alive.
type Heartbeat struct {
	Period time.Duration

	started bool
	beat    uint64
	last    time.Time     // of the last sample
	still   time.Time     // the last sign of life, or of having nothing to do
	unseen  time.Duration // since then: when nobody looked
	rung    time.Time     // when it became Suspect; zero: it is not
}

// Interval returns how long to wait between two samples.
func (h *Heartbeat) Interval() time.Duration { return h.Period / samplesPerPeriod }

// Since returns when the driver last gave a sign of life.
func (h *Heartbeat) Since() time.Time { return h.still }

// Observe takes a sample made at now. excuse is how long the driver's threads were ready to run since Since and got no
// processor; it is only asked for when it matters, and may be nil.
func (h *Heartbeat) Observe(now time.Time, s Sample, excuse func() time.Duration) Verdict {
	fresh := !h.started || s.Beat != h.beat || s.Busy || !s.Pending
	// A watcher that was itself kept from running for half a period knows nothing about that time. It has looked once
	// nevertheless: where a driver in a loop keeps the watcher waiting every time, it is still found out.
	if gap := now.Sub(h.last); h.started && gap > h.Period/2+h.Interval() {
		h.unseen += gap - h.Interval()
	}
	h.started, h.beat, h.last = true, s.Beat, now
	if fresh {
		h.still, h.unseen, h.rung = now, 0, time.Time{}
		return Alive
	}
	silent := now.Sub(h.still)
	seen := silent - h.unseen
	switch {
	case h.rung.IsZero() && seen >= h.Period*2/samplesPerPeriod:
		h.rung = now
		return Suspect
	case h.rung.IsZero() || seen < h.Period:
		return Alive
	}
	if excuse != nil && silent < h.Period+excuse() {
		return Alive
	}
	return Hung
}
