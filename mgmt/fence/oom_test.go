package fence

import (
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Whom the kernel kills for want of memory, and whose bound it was, is known afterwards: the group's own, or that of one above it.
func TestOOMKills(t *testing.T) {
	for _, c := range []struct {
		name         string
		outer, inner uint64
		full         string
	}{
		{"its own bound", 512 << 20, 64 << 20, "t.a/v.web"},
		{"that of its tenant", 64 << 20, 512 << 20, "t.a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := open(t, CPU, Memory)
			apply(t, tree, Group{"", Limits{}}, Group{"t.a", Limits{MemoryBytes: c.outer}}, Group{"t.a/v.web", Limits{MemoryBytes: c.inner}})
			cmd, in := startMember(t, hog)
			if err := tree.Add("t.a/v.web", cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if n := tree.OOMKills("t.a/v.web"); n != 0 {
				t.Errorf("%d killed before", n)
			}
			if full, limit, ok := tree.Full("t.a/v.web"); ok {
				t.Errorf("group %q of %d bytes was full before", full, limit)
			}
			in.Close()
			err := cmd.Wait()
			if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != unix.SIGKILL {
				t.Fatalf("it ended with %v", err)
			}
			if n := tree.OOMKills("t.a/v.web"); n != 1 {
				t.Errorf("%d killed", n)
			}
			if full, limit, ok := tree.Full("t.a/v.web"); !ok || full != c.full || limit != 64<<20 {
				t.Errorf("full is %q with %d bytes, %v", full, limit, ok)
			}
			if n := tree.OOMKills("v.other"); n != 0 {
				t.Errorf("%d killed of a group that is not there", n)
			}
		})
	}
	if none := None(os.ErrNotExist); none.OOMKills("v.web") != 0 {
		t.Error("killed without cgroups")
	}
}
