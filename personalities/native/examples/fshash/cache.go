package main

import (
	"fmt"
	"io"
	"sync"
)

// Geometry of the cache: metadata is read in lines, of which a bounded number is kept.
const (
	lineSize = 64 << 10
	maxLines = 512
)

// cache is an io.ReaderAt that reads its disk in whole lines and keeps those used last. It is for metadata;
// file content goes around it. It is safe for concurrent use.
type cache struct {
	disk io.ReaderAt
	size int64

	mu    sync.Mutex
	lines map[int64]*line
	tick  uint64
}

type line struct {
	once sync.Once
	used uint64 // tick of the last use
	data []byte
	err  error
}

func newCache(disk io.ReaderAt, size int64) *cache {
	return &cache{disk: disk, size: size, lines: map[int64]*line{}}
}

// ReadAt implements io.ReaderAt.
func (c *cache) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	n := 0
	for n < len(p) {
		if off >= c.size {
			return n, io.EOF
		}
		l := c.line(off / lineSize)
		if l.err != nil {
			return n, l.err
		}
		k := copy(p[n:], l.data[off%lineSize:])
		n += k
		off += int64(k)
	}
	return n, nil
}

// line returns line i, read.
func (c *cache) line(i int64) *line {
	c.mu.Lock()
	c.tick++
	l := c.lines[i]
	if l == nil {
		if len(c.lines) >= maxLines {
			c.evict()
		}
		l = &line{}
		c.lines[i] = l
	}
	l.used = c.tick
	c.mu.Unlock()
	l.once.Do(func() {
		l.data = make([]byte, min(lineSize, c.size-i*lineSize))
		if _, l.err = c.disk.ReadAt(l.data, i*lineSize); l.err == io.EOF {
			l.err = nil
		}
	})
	return l
}

// evict drops the quarter of the lines that was not used for longest. c.mu is held.
func (c *cache) evict() {
	limit := c.tick
	for _, l := range c.lines {
		limit = min(limit, l.used)
	}
	limit += (c.tick - limit) / 4
	for i, l := range c.lines {
		if l.used <= limit {
			delete(c.lines, i)
		}
	}
}
