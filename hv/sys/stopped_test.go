package sys

import (
	"runtime"
	"testing"

	"github.com/grailos/grail/hv"
)

// TestWhereStopped stops a guest that loops: the report says where.
func TestWhereStopped(t *testing.T) {
	t.Setenv("GUEST_GODEBUG", "asyncpreemptoff=1") // the loop is never left
	r := runWith(t, 64<<20, func(g *Guest) {
		go func() {
			for g.Stats().Calls["getppid"] == 0 {
				runtime.Gosched()
			}
			g.Kill()
		}()
	}, build(t, `package main
import "syscall"
func main() { syscall.Getppid(); for {} }`))
	f := r.guest.Fault()
	if r.Cause != hv.CauseStop || f == nil || f.Signal != 0 || f.Vector >= 0 || f.Regs["rip"] == 0 || len(f.Code) == 0 {
		t.Errorf("%v, %+v", r.End, f)
	}
}
