package daemon

import (
	"testing"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
)

// A VM that starts while its driver is replaced for breaking the rules of rings starts all the same, and is served once it has started its rings anew.
func TestStartInNewEpoch(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	dr, err := r.d.driver("blk0")
	if err != nil {
		t.Fatal(err)
	}
	state := func(s api.State) {
		dr.mu.Lock()
		dr.set(s, "")
		dr.mu.Unlock()
	}
	clients := func() []*client {
		dr.mu.Lock()
		defer dr.mu.Unlock()
		return dr.clientList()
	}
	state(api.Recovering)
	started := make(chan error, 1)
	go func() {
		_, err := r.start("v", "wait", nil, api.DiskRef{Driver: "blk0", Disk: "d"})
		started <- err
	}()
	eventually(t, "the VM waits for its driver", func() bool { return len(clients()) == 1 })
	c := clients()[0]
	if err := c.beginEpoch(); err != nil || !c.awaited() {
		t.Fatalf("awaited: %t, %v", c.awaited(), err)
	}
	state(api.Ready)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	served := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.on != nil
	}
	if served() {
		t.Error("served before it has started its rings anew")
	}
	if err := c.setWord(abi.WordAck(0), c.word(abi.WordEpoch)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the VM is served", served)
}
