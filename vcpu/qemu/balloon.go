package qemu

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A guest gives memory back by its balloon (virtio 1.2 §5.5 Traditional Memory Balloon Device): its driver takes pages from its own kernel and tells QEMU, which gives them back to
// the host. A guest without that driver gives nothing, and one that uses a page of its balloon again gets it again: who must hold it to a bound looks at Allocated.

// Balloon has the guest give back what it has beyond keep bytes, or take back what it gave. It does not wait for the guest.
func (v *VM) Balloon(ctx context.Context, keep int64) error {
	return v.Run(ctx, "balloon", map[string]int64{"value": keep}, nil)
}

// Ballooned returns how many bytes of its memory the guest has not given back.
func (v *VM) Ballooned(ctx context.Context) (kept int64, err error) {
	var reply struct {
		Actual int64 `json:"actual"`
	}
	err = v.Run(ctx, "query-balloon", nil, &reply)
	return reply.Actual, err
}

// Allocated returns how many bytes of a guest's RAM (NewRAM) have host memory.
func Allocated(ram *os.File) (int64, error) {
	var st unix.Stat_t
	c, err := ram.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := c.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); cerr != nil {
		return 0, cerr
	}
	return st.Blocks * 512, err
}

// populateStep is how much RAM is populated at a time.
const populateStep = 64 << 20

// Populate puts host memory behind RAM until bytes of it have some, from its start on; what is there already counts. progress, if not nil, is told how far it has come. Errors: those of ctx;
// the host has not got it.
func Populate(ctx context.Context, ram *os.File, bytes int64, progress func(done int64)) error {
	size, err := ram.Seek(0, unix.SEEK_END)
	if err != nil {
		return err
	}
	bytes = min(bytes, size)
	for at := int64(0); at < size; {
		have, err := Allocated(ram)
		if err != nil {
			return err
		}
		if progress != nil {
			progress(min(have, bytes))
		}
		if have >= bytes {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(populateStep, bytes-have, size-at)
		c, err := ram.SyscallConn()
		if err != nil {
			return err
		}
		cerr := c.Control(func(fd uintptr) {
			for err = unix.EINTR; err == unix.EINTR; {
				err = unix.Fallocate(int(fd), 0, at, n)
			}
		})
		if cerr != nil {
			return cerr
		}
		if err != nil {
			return fmt.Errorf("the host has no memory for more than %d of %d MiB that are reserved: %w", have>>20, bytes>>20, err)
		}
		at += n
	}
	return nil
}
