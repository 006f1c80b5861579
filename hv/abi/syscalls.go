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
)

// PollRing among the events of SysWait: ring, do not wait.
const PollRing = ring.PollRing

// MaxDevBatch is the largest number of requests in one SysDevIO call.
const MaxDevBatch = 256
