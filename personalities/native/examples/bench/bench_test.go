package main

import "testing"

// TestSmall checks that the work does what its names say, on little of it.
func TestSmall(t *testing.T) {
	if arith(1000) == arith(1001) || arith(1000) != arith(1000) {
		t.Error("arith does not depend on its rounds alone")
	}
	for _, b := range benchmarks {
		if b.name == "cpu_arith" || b.name == "cpu_threads2" || b.name == "mem_copy" {
			continue // too long for a test, and without branches
		}
		if err := b.prepare()(); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
	}
}
