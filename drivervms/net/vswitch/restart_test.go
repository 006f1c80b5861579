package vswitch

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

type crash struct{}

// TestRestart kills the switch between any two steps, again and again, and has a successor go on from the rings: every frame
// arrives, in order, once or repeated within the round that was cut short, and no buffer is lost.
func TestRestart(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, step := range []Step{StepTaken, StepForwarded, StepReceived, StepPublished} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			a, b := newVM(t, 1, portAt(1, 0), vmOptions{size: 32}), newVM(t, 2, portAt(2, 0), vmOptions{size: 32})
			s := newBed(t, nil, a, b)
			next, want, repeated, crashes := uint32(0), uint32(0), 0, 0
			for round := range 2000 {
				for range rng.IntN(20) {
					if !a.send(between(a, b, string(binary.BigEndian.AppendUint32(nil, next)))) {
						break
					}
					next++
				}
				if rng.IntN(3) == 0 {
					n := rng.IntN(10)
					if step != StepTaken {
						n = 0
					}
					s.Step = func(p Step) {
						if p == step {
							if n--; n < 0 {
								panic(crash{})
							}
						}
					}
				}
				func() {
					defer func() {
						switch v := recover(); v {
						case nil:
						case crash{}:
							crashes++
							s = newBed(t, nil, a, b)
						default:
							panic(v)
						}
					}()
					s.Round()
				}()
				s.Step = nil
				last := want
				for _, g := range b.recv() {
					switch k := binary.BigEndian.Uint32(g.b[42:]); {
					case k == last:
						last++
						want = max(want, last)
					case k < last && last-k <= 64:
						repeated++
						last = k + 1
					default:
						t.Fatalf("round %d: frame %d, want %d", round, k, last)
					}
				}
				b.rx[0].Arm()
			}
			for range 10 {
				s.Round()
				for _, g := range b.recv() {
					want = max(want, binary.BigEndian.Uint32(g.b[42:])+1)
				}
			}
			if want != next {
				t.Errorf("%d frames of %d arrived", want, next)
			}
			if a.reapTx(0); a.tx[0].Outstanding() != 0 || b.rx[0].Outstanding() != 32 {
				t.Errorf("%d buffers out, %d in", a.tx[0].Outstanding(), b.rx[0].Outstanding())
			}
			if crashes < 50 || want < 1000 || repeated > 0 && step != StepReceived && step != StepPublished {
				t.Errorf("%d crashes, %d frames, %d repeated", crashes, want, repeated)
			}
			t.Logf("%d crashes, %d frames, %d repeated", crashes, want, repeated)
		})
	}
}
