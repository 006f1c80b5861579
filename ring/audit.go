package ring

import (
	"encoding/binary"
	"fmt"
)

// Evidence is a copy of what stands in memory about one queue that a device serves, for those who only look. It may have been
// taken while both sides were at work.
type Evidence struct {
	Size  uint16
	Avail uint16 // the driver's index
	Used  []byte // the used ring, UsedBytes(Size) long
	Log   []byte // the queue's region of the in-flight log, InflightBytes(Size) long; nil: none
}

// UsedIdx returns the device's index.
func (e *Evidence) UsedIdx() uint16 { return binary.LittleEndian.Uint16(e.Used[offIdx:]) }

// usedHead returns what place i of the used ring names.
func (e *Evidence) usedHead(i int) uint32 { return binary.LittleEndian.Uint32(e.Used[offRing+8*i:]) }

// WildHeads returns the places of the used ring that name no head of the queue, with what they name: what Audit finds first.
func (e *Evidence) WildHeads() (wild map[int]uint32) {
	for i := range int(e.Size) {
		if id := e.usedHead(i); id >= uint32(e.Size) {
			if wild == nil {
				wild = map[int]uint32{}
			}
			wild[i] = id
		}
	}
	return wild
}

// Pardon has Audit not find wild heads that a former device has left, and that stand as they were. They stay in the ring until it comes round.
func (e *Evidence) Pardon(wild map[int]uint32) {
	for i, id := range wild {
		if e.usedHead(i) == id {
			binary.LittleEndian.PutUint32(e.Used[offRing+8*i:], 0)
		}
	}
}

// Rule is a rule that a device has to keep with what it writes.
type Rule int

// The rules.
const (
	RuleNone      Rule = iota
	RuleUsedHead       // the used ring names heads of the queue
	RuleLogFormat      // the log is one of the queue
	RuleLogEntry       // an entry of the log is in flight or is not
	RuleLogBatch       // the log's last batch begins with a head of the queue
	RuleLogAhead       // the log knows of no more than was published, and lacks at most what a queue holds
	RuleLogUsed        // the log knows of what was published last; for an instant it need not
	RuleUsedIndex      // nothing is completed that was not offered
	RuleInFlight       // nothing is in flight that was not offered, or that is completed
)

// Forgeable reports whether a hostile driver of the queue can make a device that keeps all the rules look as if it broke r, though it
// can write to its own index alone.
func (r Rule) Forgeable() bool { return r == RuleUsedIndex || r == RuleInFlight }

// Finding is what Audit has found.
type Finding struct {
	Rule Rule
	What string // in words, with numbers
	Log  uint16 // the used index as the log says, for RuleLogUsed
}

// Momentary reports whether a device that keeps r can be found not to at some instant.
func (r Rule) Momentary() bool { return r == RuleLogUsed || r == RuleUsedIndex || r == RuleInFlight }

// Audit returns a rule that the evidence says is broken, or one with RuleNone. One finding proves nothing: the copy may be torn; two do. Of a rule that is
// Momentary they do if the device finished a round between them, and for RuleLogUsed if Log stood still; a rule that is Forgeable may have
// been broken by either side. Used and Log have to be copied while the used index stood still.
// Preconditions: the lengths that Evidence says, and a valid size.
func Audit(e *Evidence) Finding {
	used := e.UsedIdx()
	for i := range int(e.Size) {
		if id := e.usedHead(i); id >= uint32(e.Size) {
			return Finding{Rule: RuleUsedHead, What: fmt.Sprintf("the used ring names head %d, and the queue has %d", id, e.Size)}
		}
	}
	inFlight := 0
	if e.Log != nil {
		le := binary.LittleEndian
		version := le.Uint16(e.Log[logVersion:])
		if version == 0 {
			return e.auditIndex(used, 0) // not yet in use
		}
		if n, f := le.Uint16(e.Log[logDescNum:]), le.Uint64(e.Log[logFeatures:]); version != logFormat || n != e.Size || f != 0 {
			return Finding{Rule: RuleLogFormat, What: fmt.Sprintf("the in-flight log has version %d, features %#x and %d entries for a queue of %d", version, f, n, e.Size)}
		}
		for i := range int(e.Size) {
			switch flag := e.Log[logEntries+logEntryLen*i+entInflight]; {
			case flag > 1:
				return Finding{Rule: RuleLogEntry, What: fmt.Sprintf("entry %d of the in-flight log has flag %d", i, flag)}
			case flag == 1:
				inFlight++
			}
		}
		if head := le.Uint16(e.Log[logLastBatch:]); head >= e.Size {
			return Finding{Rule: RuleLogBatch, What: fmt.Sprintf("the in-flight log's last batch begins with head %d, and the queue has %d", head, e.Size)}
		}
		if n := le.Uint16(e.Log[logUsedIdx:]); n != used {
			f := Finding{Rule: RuleLogUsed, What: fmt.Sprintf("the used index is %d, and the in-flight log says %d", used, n), Log: n}
			if used-n > e.Size {
				f.Rule = RuleLogAhead
			}
			return f
		}
	}
	return e.auditIndex(used, inFlight)
}

// auditIndex compares with the driver's index.
func (e *Evidence) auditIndex(used uint16, inFlight int) Finding {
	outstanding := e.Avail - used
	switch {
	case outstanding > e.Size:
		return Finding{Rule: RuleUsedIndex, What: fmt.Sprintf("the used index is %d, and %d was offered", used, e.Avail)}
	case inFlight > int(outstanding):
		return Finding{Rule: RuleInFlight, What: fmt.Sprintf("%d requests stand as in flight, and %d are outstanding", inFlight, outstanding)}
	}
	return Finding{}
}

// Recoverable reports whether the next device can go on from what e says the last one left, which may have died between any two steps.
// It uses e.Log up. Errors: ErrLog, or a rule that is broken, in words.
func Recoverable(e *Evidence) error {
	if f := Audit(&Evidence{Size: e.Size, Avail: e.Avail, Used: e.Used}); f.Rule != RuleNone {
		return fmt.Errorf("%w: %s", ErrLog, f.What)
	}
	if e.Log == nil {
		return nil
	}
	l, err := NewInflight(e.Log, e.Size)
	if err != nil {
		return err
	}
	heads, _, err := l.Recover(e.UsedIdx())
	if err != nil {
		return err
	}
	if f := e.auditIndex(e.UsedIdx(), len(heads)); f.Rule != RuleNone {
		return fmt.Errorf("%w: %s", ErrLog, f.What)
	}
	return nil
}
