package state

// Cells keeps counters by key in the words of a region: the first word says how many cells there are, and each is a key, 0 for none, and a T. T
// is a struct of uint64 alone: what a predecessor left there may be anything.
type Cells[T any] struct {
	words  []uint64
	stride int
	used   int            // cells, as the first word says
	most   int            // that there is room for
	at     map[uint64]int // where the cell of a key starts
	free   []int
}

// NewCells finds the cells that words hold. Without words all counters are private.
func NewCells[T any](words []uint64) *Cells[T] {
	c := &Cells[T]{words: words, stride: 1 + wordsOf[T](), at: map[uint64]int{}}
	if len(words) == 0 {
		return c
	}
	c.most = (len(words) - 1) / c.stride
	c.used = int(min(words[0], uint64(c.most)))
	words[0] = uint64(c.used)
	for n := range c.used {
		i := 1 + n*c.stride
		key := words[i]
		if _, twice := c.at[key]; key == 0 || twice {
			words[i] = 0
			c.free = append(c.free, i)
			continue
		}
		c.at[key] = i
	}
	return c
}

// Of returns the counters of a key, which is not 0: those that the predecessor left, or else zeroes. When there is no room, they take the place of those
// of a key that is not in use, and if all are, they are private.
func (c *Cells[T]) Of(key uint64, inUse func(key uint64) bool) *T {
	if i, ok := c.at[key]; ok {
		return c.cell(i)
	}
	if key == 0 {
		return new(T)
	}
	if len(c.free) == 0 && c.used < c.most {
		c.free = append(c.free, 1+c.used*c.stride)
		c.used++
		c.words[0] = uint64(c.used)
	}
	if len(c.free) == 0 {
		for k, i := range c.at {
			if !inUse(k) {
				delete(c.at, k)
				c.words[i] = 0
				c.free = append(c.free, i)
				break
			}
		}
	}
	n := len(c.free)
	if n == 0 {
		return new(T)
	}
	i := c.free[n-1]
	c.free = c.free[:n-1]
	clear(c.words[i+1 : i+c.stride])
	c.words[i] = key
	c.at[key] = i
	return c.cell(i)
}

func (c *Cells[T]) cell(i int) *T { return cell[T](c.words[i+1 : i+c.stride]) }
