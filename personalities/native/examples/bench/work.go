package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
)

var benchmarks = []benchmark{
	{"cpu_arith", "100 million rounds of integer arithmetic", func() func() error {
		return func() error { return check(arith(arithRounds / shorten)) }
	}},
	{"cpu_sort", "sort 1 million integers, twice", prepareSort},
	{"cpu_sha256", "SHA-256 of 256 MiB", prepareSHA},
	{"cpu_json", "encode and decode 1,000 records, 30 times", prepareJSON},
	{"cpu_threads2", "cpu_arith on each of two threads", func() func() error { return threads2 }},
	{"mem_copy", "copy 256 MiB, 4 times", prepareCopy},
}

// shorten divides the work; tests set it.
var shorten = 1

const arithRounds = 100_000_000

// arith does rounds of multiplications, shifts and additions that depend on each other.
func arith(rounds int) uint64 {
	x := uint64(88172645463325252)
	for range rounds {
		x ^= x << 13
		x ^= x >> 7
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

// check keeps the compiler from dropping the work.
func check(x uint64) error {
	if x == 0 {
		return errors.New("result is 0")
	}
	return nil
}

func threads2() error {
	var wg sync.WaitGroup
	var sum [2]uint64
	for i := range sum {
		wg.Add(1)
		go func() {
			defer wg.Done()
			sum[i] = arith(arithRounds / shorten)
		}()
	}
	wg.Wait()
	if sum[0] != sum[1] {
		return errors.New("threads disagree")
	}
	return check(sum[0])
}

func prepareSort() func() error {
	rnd := rand.New(rand.NewPCG(1, 2))
	from := make([]int, 1_000_000/shorten)
	for i := range from {
		from[i] = rnd.Int()
	}
	to := make([]int, len(from))
	return func() error {
		for range 2 {
			copy(to, from)
			slices.Sort(to)
			if !slices.IsSorted(to) {
				return errors.New("not sorted")
			}
		}
		return nil
	}
}

func prepareSHA() func() error {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i)
	}
	return func() error {
		h := sha256.New()
		for range max(256/shorten, 1) {
			h.Write(b)
		}
		return check(uint64(len(h.Sum(nil))))
	}
}

// record is what cpu_json works on.
type record struct {
	ID    int               `json:"id"`
	Name  string            `json:"name"`
	Score float64           `json:"score"`
	Tags  []string          `json:"tags"`
	Attrs map[string]string `json:"attrs"`
}

func prepareJSON() func() error {
	var rs []record
	for i := range 1000 {
		rs = append(rs, record{
			ID: i, Name: fmt.Sprint("record number ", i), Score: float64(i) / 7,
			Tags: []string{"alpha", "beta", "gamma"}, Attrs: map[string]string{"colour": "blue", "size": fmt.Sprint(i)},
		})
	}
	return func() error {
		for range max(30/shorten, 1) {
			b, err := json.Marshal(rs)
			if err != nil {
				return err
			}
			var back []record
			if err := json.Unmarshal(b, &back); err != nil {
				return err
			}
			if len(back) != len(rs) {
				return errors.New("records were lost")
			}
		}
		return nil
	}
}

func prepareCopy() func() error {
	from, to := make([]byte, 256<<20/shorten), make([]byte, 256<<20/shorten)
	for i := 0; i < len(from); i += 4096 {
		from[i], to[i] = byte(i>>12), 1
	}
	return func() error {
		for range 4 {
			copy(to, from)
		}
		if to[len(to)-4096] != from[len(from)-4096] {
			return errors.New("copy differs")
		}
		return nil
	}
}
