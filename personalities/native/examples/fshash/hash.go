package main

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
)

// readChunk is how much of a file is read at a time, in bytes.
const readChunk = 1 << 20

// HashAll returns the SHA-256 of each file's content and the bytes hashed in all. progress is called now and
// then with the counts so far, from one goroutine at a time.
func HashAll(fs *FS, files []File, workers int, progress func(files int, bytes int64)) (sums [][32]byte, bytes int64, err error) {
	sums = make([][32]byte, len(files))
	var next, total atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	finished := 0
	for range max(workers, 1) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, readChunk)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(files) {
					return
				}
				sum, e := hashOne(fs, files[i], buf)
				mu.Lock()
				if e != nil && err == nil {
					err = fmt.Errorf("%s: %w", files[i].Path, e)
				}
				stop := err != nil
				finished++
				if progress != nil && !stop {
					progress(finished, total.Add(files[i].Size))
				}
				mu.Unlock()
				if stop {
					return
				}
				sums[i] = sum
			}
		}()
	}
	wg.Wait()
	return sums, total.Load(), err
}

func hashOne(fs *FS, f File, buf []byte) (sum [32]byte, err error) {
	content, err := fs.Open(f)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	for off := int64(0); off < f.Size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), f.Size-off)]
		if _, err := content.ReadAt(p, off); err != nil {
			return sum, err
		}
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum, nil
}
