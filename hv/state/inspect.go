package state

// Info describes what a region holds.
type Info struct {
	Checkpoints int    // valid ones: 0 to 2
	Version     uint32 // of the contents, in the newest checkpoint
	Generation  uint64 // of the newest checkpoint: counts checkpoints
	Sequence    uint64 // of the last valid record: counts records
	Items       int    // in the newest checkpoint
	Records     int    // in the journal
	Bytes       int    // of the newest checkpoint and of the journal's records
}

// Inspect looks at a region without changing it; of one in which nothing is valid, or whose size is impossible, the Info is zero. It
// does not panic, whatever is in the region, as long as nobody writes to it meanwhile.
func Inspect(mem []byte) (i Info) {
	if checkSize(len(mem)) != nil {
		return i
	}
	for _, k := range []int{partFirst, partSecond} {
		if _, ok := parseCheckpoint(part(mem, k)); ok {
			i.Checkpoints++
		}
	}
	c, _, ok := newest(mem)
	if !ok {
		return Info{}
	}
	i.Version, i.Generation = c.version, c.generation
	i.Items = c.each(func(uint16, []byte) {})
	records, end := eachRecord(part(mem, partJournal), &c, func(uint16, []byte) {})
	i.Records, i.Sequence, i.Bytes = records, c.sequence+uint64(records), checkpointHeader+len(c.items)+end
	return i
}

// Newer reports whether i reaches further than o.
func (i Info) Newer(o Info) bool {
	return i.Generation > o.Generation || i.Generation == o.Generation && i.Sequence > o.Sequence
}
