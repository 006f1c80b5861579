package vswitch

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// modelSwitch says in the most obvious way who gets a frame.
type modelSwitch struct {
	ports   map[int]PortConfig
	learned map[[2]uint64]int // by tenant and MAC
}

func (m *modelSwitch) deliver(from int, dst, src MAC, ip bool, srcIP, dstIP netip.Addr) (to []int) {
	const uplink = 0
	p := m.ports[from]
	owner := func(test func(c PortConfig) bool) int {
		for i, c := range m.ports {
			if test(c) {
				return i
			}
		}
		return -1
	}
	if src[0]&1 != 0 {
		return nil
	}
	if !p.Unpinned {
		if src != p.MAC || !ip || srcIP != p.Addr.Addr() {
			return nil
		}
	} else {
		if o := owner(func(c PortConfig) bool { return c.MAC == src }); o >= 0 && o != from {
			return nil
		}
		if o := owner(func(c PortConfig) bool { return c.Addr.Addr() == srcIP }); ip && o >= 0 && o != from {
			return nil
		}
		if src != p.MAC {
			m.learned[[2]uint64{uint64(p.Tenant), src.key()}] = from
		}
	}
	foreign := false
	if o := owner(func(c PortConfig) bool { return c.Addr.Addr() == dstIP }); ip && o >= 0 && m.ports[o].Tenant != p.Tenant {
		foreign = true
	}
	if dst[0]&1 == 0 {
		o := owner(func(c PortConfig) bool { return c.MAC == dst && c.Tenant == p.Tenant })
		if o < 0 {
			if k, ok := m.learned[[2]uint64{uint64(p.Tenant), dst.key()}]; ok && m.ports[k].MAC != (MAC{}) && m.ports[k].Tenant == p.Tenant {
				o = k // unless that port has no client now
			}
		}
		if o == from {
			return nil
		}
		if o >= 0 {
			return []int{o}
		}
	}
	for i, c := range m.ports {
		if i != from && c.Tenant == p.Tenant && (dst[0]&1 != 0 || c.Unpinned) {
			to = append(to, i)
		}
	}
	if !p.NoUplink && !foreign {
		to = append(to, uplink)
	}
	slices.Sort(to)
	return to
}

// TestModel compares the switch with the model, ports coming and going.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		up := &fakeUplink{}
		s := newBed(t, up)
		m := &modelSwitch{ports: map[int]PortConfig{}, learned: map[[2]uint64]int{}}
		vms := map[int]*vm{}
		const n = 8
		delivered := 0
		for step := range 600 {
			i := 1 + rng.IntN(n)
			if vms[i] == nil || rng.IntN(60) == 0 {
				if vms[i] != nil {
					s.Detach(uint64(i))
					delete(vms, i)
					delete(m.ports, i)
					continue
				}
				c := portAt(i, uint16(rng.IntN(2)))
				c.Unpinned, c.NoUplink = rng.IntN(2) == 0, rng.IntN(4) == 0
				c.FloodRate, c.FloodBurst = 1e6, 1e6
				vms[i] = newVM(t, uint64(i), c, vmOptions{size: 8})
				s.attach(vms[i])
				m.ports[i] = c
				// What was learned at the port before is known again, as far as that is still right.
				for k, o := range m.learned {
					configured := slices.ContainsFunc(slices.Collect(maps.Values(m.ports)), func(c PortConfig) bool { return c.MAC.key() == k[1] })
					if o == i && k[0] == uint64(c.Tenant) && (!c.Unpinned || configured) {
						delete(m.learned, k)
					}
				}
				// A configured address takes the place of a learned one.
				delete(m.learned, [2]uint64{uint64(c.Tenant), c.MAC.key()})
				continue
			}
			any := func() MAC {
				switch rng.IntN(8) {
				case 0:
					return bcast
				case 1:
					return mac(100 + rng.IntN(4))
				}
				return mac(1 + rng.IntN(n))
			}
			addr := func(i int) netip.Addr { return portAt(i, 0).Addr.Addr() }
			dst, src := any(), mac(i)
			srcIP, dstIP := addr(i), addr(1+rng.IntN(n+2))
			if rng.IntN(4) == 0 {
				src = any()
			}
			if rng.IntN(5) == 0 {
				srcIP = addr(1 + rng.IntN(n+3))
			}
			ip := rng.IntN(5) > 0
			f := udp(dst, src, srcIP, dstIP, 1, 10000+uint16(step), []byte(fmt.Sprint(step)))
			if !ip {
				f[12], f[13] = 0x88, 0xb5
			}
			want := m.deliver(i, dst, src, ip, srcIP, dstIP)
			vms[i].send(f)
			s.run()
			var got []int
			for k, v := range vms {
				for _, g := range v.recv() {
					if string(g.b) != string(f) {
						t.Fatalf("step %d: another frame", step)
					}
					got = append(got, k)
				}
			}
			for _, g := range up.out {
				if string(g.b) != string(f) {
					t.Fatalf("step %d: another frame", step)
				}
				got = append(got, 0)
			}
			up.out = nil
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: port %d %+v, %s to %s, %s to %s, ip %t: got to %v, want %v", step, i, m.ports[i], src, dst, srcIP, dstIP, ip, got, want)
			}
			delivered += len(got)
		}
		if delivered < 100 {
			t.Errorf("only %d frames were delivered", delivered)
		}
	}
}
