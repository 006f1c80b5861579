package inject

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Fault names a mechanism.
type Fault string

// The mechanisms, each with what Order.How may be.
const (
	Exception Fault = "exception" // a name of amd64.Exceptions
	Flip      Fault = "flip"      // code, data, stack, registers
	Call      Fault = "syscall"   // fail, delay, hang
	IO        Fault = "io"        // error, short, slow
	Bell      Fault = "bell"      // lost, double
	Memory    Fault = "memory"    // take
	Clock     Fault = "clock"     // both, monotonic, realtime
)

// Values of Order.How.
const (
	Code, Data, Stack, Registers = "code", "data", "stack", "registers"
	Fail, Delay, Hang            = "fail", "delay", "hang"
	Error, Short, Slow           = "error", "short", "slow"
	Lost, Double                 = "lost", "double"
	Take                         = "take"
	Both, Monotonic, Realtime    = "both", "monotonic", "realtime"
)

var hows = map[Fault][]string{
	Flip: {Code, Data, Stack, Registers}, Call: {Fail, Delay, Hang}, IO: {Error, Short, Slow}, Bell: {Lost, Double},
	Memory: {Take}, Clock: {Both, Monotonic, Realtime},
}

// Order is one fault to make.
type Order struct {
	Fault Fault  `json:"fault"`
	How   string `json:"how"`
	Seed  uint64 `json:"seed"` // of all that is random

	// Of faults that are armed (Call, IO, Bell).
	Times  uint64  `json:"times,omitempty"`  // how often it strikes, 1 to MaxTimes
	Chance float64 `json:"chance,omitempty"` // of each occasion, above 0 up to 1; 0: 1

	DelayMs int64   `json:"delayMs,omitempty"` // Delay, Slow: 1 to MaxDelayMs
	Errno   int     `json:"errno,omitempty"`   // Fail, Error: 1 to 4095; of Fail 0: one that Linux could give, by seed
	Call    *uint64 `json:"call,omitempty"`    // Call: this system call only
	Op      string  `json:"op,omitempty"`      // IO: read, write or flush only; Bell: kick or call only

	Bits   int    `json:"bits,omitempty"`   // Flip: how many, 1 to MaxBits
	JumpMs int64  `json:"jumpMs,omitempty"` // Clock: forward, or backward if negative; at most MaxJumpMs either way
	Leave  uint64 `json:"leave,omitempty"`  // Memory: bytes that are left
}

// Bounds of an Order.
const (
	MaxTimes   = 1 << 32
	MaxDelayMs = 3600_000
	MaxBits    = 64
	MaxJumpMs  = 100 * 365 * 24 * 3600_000 // 100 years
)

// Operations of Order.Op.
const (
	OpRead, OpWrite, OpFlush = "read", "write", "flush"
	OpKick, OpCall           = "kick", "call"
)

// Check reports an order that is out of bounds. Whether the VM can perform it is another question.
func (o *Order) Check() error {
	if o.Fault != Exception && !slices.Contains(hows[o.Fault], o.How) {
		return fmt.Errorf("inject: no fault %q of kind %q", o.How, o.Fault)
	}
	delays := o.Fault == Call && o.How == Delay || o.Fault == IO && o.How == Slow
	ops := map[Fault][]string{IO: {"", OpRead, OpWrite, OpFlush}, Bell: {"", OpKick, OpCall}}[o.Fault]
	switch {
	case o.Armed() && (o.Times < 1 || o.Times > MaxTimes):
		return fmt.Errorf("inject: %d times", o.Times)
	case !(o.Chance >= 0 && o.Chance <= 1): // NaN, too
		return fmt.Errorf("inject: chance %v", o.Chance)
	case delays && (o.DelayMs < 1 || o.DelayMs > MaxDelayMs):
		return fmt.Errorf("inject: delay of %d ms", o.DelayMs)
	case o.Errno < 0 || o.Errno > 4095 || o.Fault == IO && o.How == Error && o.Errno == 0:
		return fmt.Errorf("inject: error number %d", o.Errno)
	case ops != nil && !slices.Contains(ops, o.Op):
		return fmt.Errorf("inject: operation %q", o.Op)
	case o.Fault == Flip && (o.Bits < 1 || o.Bits > MaxBits):
		return fmt.Errorf("inject: %d bits", o.Bits)
	case o.Fault == Clock && (o.JumpMs == 0 || o.JumpMs > MaxJumpMs || o.JumpMs < -MaxJumpMs):
		return fmt.Errorf("inject: jump of %d ms", o.JumpMs)
	}
	return nil
}

// Armed reports whether the fault is one that waits for its occasions.
func (o *Order) Armed() bool { return o.Fault == Call || o.Fault == IO || o.Fault == Bell }

// Random returns the order's own source of randomness, from its beginning.
func (o *Order) Random() *rand.Rand { return rand.New(rand.NewPCG(o.Seed, 0x6772_6169_6c)) }

// Jump returns how far the clock is to jump.
func (o *Order) Jump() time.Duration { return time.Duration(o.JumpMs) * time.Millisecond }

// Hit says what was done.
type Hit struct {
	What string `json:"what"`
	// Code are addresses in What that lie in the program's code, which is loaded Bias above where it was linked.
	Code []uint64 `json:"code,omitempty"`
	Bias uint64   `json:"bias,omitempty"`
}

// ErrUnsupported reports a fault that the engine cannot make.
var ErrUnsupported = fmt.Errorf("inject: not on this engine: %w", unix.EOPNOTSUPP)

// ErrNoThread reports that there is nobody to make the fault in.
var ErrNoThread = errors.New("the program has no thread: it has not begun yet, or has ended; try again while it runs")
