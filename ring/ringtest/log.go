package ringtest

import "sort"

// InFlight returns the heads that the log of one queue names as in flight, in order, by the vhost-user
// protocol's recovery procedure done the obvious way. It is for logs that are in use and consistent.
func InFlight(log []byte, usedIdx uint16) []uint16 {
	entry := func(i uint16) []byte { return log[16+16*int(i):] }
	live := map[uint16]bool{}
	for i := range le.Uint16(log[10:]) {
		live[i] = entry(i)[0] == 1
	}
	at := le.Uint16(log[12:])
	for n := le.Uint16(log[14:]); n != usedIdx; n++ {
		live[at] = false
		at = le.Uint16(entry(at)[6:])
	}
	var heads []uint16
	for i := range le.Uint16(log[10:]) {
		if live[i] {
			heads = append(heads, i)
		}
	}
	sort.SliceStable(heads, func(a, b int) bool { return le.Uint64(entry(heads[a])[8:]) < le.Uint64(entry(heads[b])[8:]) })
	return heads
}
