package serve

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring/virtioblk"
)

// Test reads the first sector of every disk, and flushes those that can be written. It returns the first error. No client is attached.
func (s *Server) Test() error {
	for _, name := range slices.Sorted(maps.Keys(s.disks)) {
		d := s.disks[name]
		if d.Size >= virtioblk.SectorSize {
			read := []Op{{FD: d.FD, Kind: abi.DevRead, Length: virtioblk.SectorSize, Segs: [][]byte{make([]byte, virtioblk.SectorSize)}}}
			if s.dev.Do(read); read[0].Result != virtioblk.SectorSize {
				return fmt.Errorf("disk %s: read: %s", name, outcome(read[0].Result))
			}
		}
		if !d.ReadOnly {
			flush := []Op{{FD: d.FD, Kind: abi.DevFlush}}
			if s.dev.Do(flush); flush[0].Result < 0 {
				return fmt.Errorf("disk %s: flush: %s", name, outcome(flush[0].Result))
			}
		}
	}
	return nil
}

func outcome(result int64) string {
	if result < 0 {
		return unix.Errno(-result).Error()
	}
	return fmt.Sprintf("%d bytes", result)
}
