package qemu

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/grailos/grail/ring/vhostuser"
)

// deadNet is a vhost-user-net back end that moves no packet.
type deadNet struct{ pairs uint16 }

// netFeatures are VIRTIO_F_VERSION_1, VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ.
const netFeatures = 1<<32 | 1<<22 | 1<<17

func (deadNet) Features() uint64 { return netFeatures }
func (deadNet) ProtocolFeatures() uint64 {
	return vhostuser.ProtocolMultiQueue | vhostuser.ProtocolReplyAck
}
func (d deadNet) Queues() uint16                         { return 2 * d.pairs }
func (deadNet) Config(_, size uint32) ([]byte, error)    { return make([]byte, size), nil }
func (deadNet) SetConfig(uint32, []byte) error           { return errors.New("read-only") }
func (deadNet) SetMemory([]vhostuser.MemRegion) error    { return nil }
func (deadNet) SetInflight(vhostuser.InflightArea) error { return nil }
func (deadNet) Start(vhostuser.QueueState) error         { return nil }
func (deadNet) SetCall(int, int) error                   { return nil }
func (deadNet) Stop(int) (uint16, error)                 { return 0, nil }
func (deadNet) Disconnected(error)                       {}

// newDeadNet serves a deadNet and returns its socket's path.
func newDeadNet(t *testing.T, pairs uint16) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "net.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				_ = vhostuser.NewBackend(c, deadNet{pairs}).Serve(ctx)
			}()
		}
	}()
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	return path
}
