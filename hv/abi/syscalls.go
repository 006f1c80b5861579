package abi

import "github.com/grailos/grail/ring"

// Grail's own system calls. The numbers lie far above Linux's, so that a host kernel which ever saw one
// would answer ENOSYS. Arguments are passed as Linux passes them: RDI, RSI, RDX, R10, R8, R9 on amd64.
const (
	// SysCaps copies the guest's capability table, an array of Cap, to the buffer (RDI = address,
	// RSI = its length in bytes). It returns the size of the whole table in bytes; nothing beyond the
	// buffer is written. Errors: EFAULT.
	SysCaps = 0x4700

	// SysDevIO performs a batch of device requests (RDI = address of an array of DevReq, RSI = number of
	// requests, at most MaxDevBatch). It returns when all are done, each with its own result in
	// DevReq.Result. The return value is the number of requests performed. Errors: EFAULT, EINVAL.
	SysDevIO = 0x4701

	// SysWait is poll for doorbells: it waits until one of the descriptors (RDI = address of an array of
	// struct pollfd, RSI = their number) is ready or RDX nanoseconds have passed (negative: for ever),
	// and drains every doorbell and eventfd that it reports readable, all in one exit. An entry with PollRing
	// among its events is a doorbell that is rung before the wait; its revents is 0, or POLLNVAL if the
	// guest cannot ring it. It returns how many entries are ready. Errors: those of poll(2).
	SysWait = 0x4702

	// SysReclaim is about memory that the host wants back (RDI = one of the Reclaim operations). Errors: EINVAL for any other, EFAULT.
	SysReclaim = 0x4703
)

// Operations of SysReclaim.
const (
	// ReclaimWait waits until there is an order other than the one that the caller knows (RDX = its ID, 0 for none) and writes it to RSI, an Order. One
	// thread at a time may wait. Errors: EBUSY, EINTR.
	ReclaimWait = 1

	// ReclaimDone returns how many bytes the program still uses beyond what it is to keep by the order whose ID is RSI. With RDX = 1 it says that it
	// has given what it can: the host need not wait for the deadline then. Errors: ESRCH, it is not the present order; EINVAL.
	ReclaimDone = 2

	// ReclaimTaken copies the repossession vector, an array of Range, to RSI, which has room for RDX of them (at most MaxTaken), and returns how many
	// there are in all: what was taken by force and has nothing else mapped over it, lowest address first.
	ReclaimTaken = 3
)

// MaxTaken is how many ranges one ReclaimTaken copies at most.
const MaxTaken = 4096

// Order says how much memory the program may keep. Its wire form is OrderSize bytes.
type Order struct {
	ID       uint64 // counts orders, from 1
	Bytes    uint64 // that may be used from the deadline on
	Used     uint64 // when the order was given, in bytes
	Deadline uint64 // on CLOCK_MONOTONIC, in nanoseconds; 0: there is nothing to give, the bound was raised
}

// Range is memory [Addr, Addr+Len). Its wire form is RangeSize bytes.
type Range struct{ Addr, Len uint64 }

// Sizes of the wire forms.
const (
	OrderSize = 32
	RangeSize = 16
)

// PollRing among the events of SysWait: ring, do not wait.
const PollRing = ring.PollRing

// MaxDevBatch is the largest number of requests in one SysDevIO call.
const MaxDevBatch = 256
