package main

import "testing"

// TestSmall does a hundredth of the work: that all of it can be done, and what the benchmarks check themselves.
func TestSmall(t *testing.T) {
	shorten = 100
	defer func() { shorten = 1 }()
	if arith(1000) == arith(1001) || arith(1000) != arith(1000) {
		t.Error("arith does not depend on its rounds alone")
	}
	for _, b := range benchmarks {
		f := b.prepare()
		for range 2 {
			if err := f(); err != nil {
				t.Errorf("%s: %v", b.name, err)
			}
		}
	}
}
