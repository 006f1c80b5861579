package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/grailos/grail/mgmt/bench/load"
)

// diskBytes is the size of the disk, all of which stays in the page cache.
const diskBytes = 256 << 20

// blockJob is one of the block benchmarks.
type blockJob struct {
	name string
	unit string
	job  load.Job
	bar  float64
}

func (j *blockJob) rate(r load.Result) float64 {
	if j.unit == "IOPS" {
		return r.PerSecond()
	}
	return r.MiBPerSecond()
}

var blockJobs = []blockJob{
	{"blk_4k_qd32", "IOPS", load.Job{Random: true, Block: 4 << 10, Depth: 32, Span: hotBytes}, 1},
	{"blk_4k_qd1", "IOPS", load.Job{Random: true, Block: 4 << 10, Depth: 1, Span: hotBytes}, 0.7},
	{"blk_1m_read", "MiB/s", load.Job{Block: 1 << 20, Depth: streams}, 1},
	{"blk_1m_write", "MiB/s", load.Job{Block: 1 << 20, Depth: streams, Write: true}, 1},
}

const (
	// hotBytes is the part of the disk that the random reads are spread over.
	hotBytes = 64 << 20
	// streams is the depth of the sequential jobs.
	streams = 8
)

var blkNames = func() (names []string) {
	for _, j := range blockJobs {
		names = append(names, j.name)
	}
	return names
}()

// Bounds of one run of a job.
const (
	blockRun   = 400 * time.Millisecond
	blockTrial = 150 * time.Millisecond
	blockWarm  = 2 * time.Second // of both, before the runs that count
	trials     = 3
)

// block measures a driver VM against qemu-storage-daemon: the same file, the same client, one queue.
func block(b *bench) ([]Result, error) {
	path := filepath.Join(b.dir, "disk.img")
	if err := makeDisk(path); err != nil {
		return nil, err
	}
	var peers []*target
	for _, c := range peerConfigs {
		d, err := startPeer(b.dir, path, c.aio, c.pollNs)
		if err != nil {
			b.progress("%v", err)
			continue
		}
		defer d.stop()
		t, err := b.dial(d.name, d.socket)
		if err != nil {
			return nil, err
		}
		defer t.client.Close()
		peers = append(peers, t)
	}
	if len(peers) == 0 {
		return nil, fmt.Errorf("%w: no qemu-storage-daemon to compare with", errSkipped)
	}
	socket, err := b.startDriver("blk", path)
	if err != nil {
		return nil, err
	}
	defer b.removeDriver("blk")
	ours, err := b.dial("driver VM", socket)
	if err != nil {
		return nil, err
	}
	defer ours.client.Close()
	var results []Result
	for i := range blockJobs {
		j := &blockJobs[i]
		if !b.wanted(j.name) {
			continue
		}
		r, err := b.compare(j, ours, peers)
		if err != nil {
			return results, fmt.Errorf("%s: %w", j.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

// target is a server, and the client that is connected to it for the whole time.
type target struct {
	name   string
	client *load.Client
}

func (b *bench) dial(name, socket string) (*target, error) {
	if err := reachable(socket); err != nil {
		return nil, err
	}
	c, err := load.Dial(b.ctx, socket, 32, 1<<20)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &target{name, c}, nil
}

// compare runs a job on the driver VM and on the peer that does it best.
func (b *bench) compare(j *blockJob, ours *target, peers []*target) (Result, error) {
	run := func(t *target, d time.Duration) func() (load.Result, error) {
		job := j.job
		job.Time = d
		return func() (load.Result, error) {
			r, err := t.client.Run(job)
			if err != nil {
				err = fmt.Errorf("%s: %w", t.name, err)
			}
			return r, err
		}
	}
	var best *target
	var bestRate float64
	for _, p := range peers {
		var rates []float64
		for range trials {
			r, err := run(p, blockTrial)()
			if err != nil {
				return Result{}, err
			}
			rates = append(rates, j.rate(r))
		}
		b.progress("%s: %s: %s %s", j.name, p.name, number(median(rates)), j.unit)
		if m := median(rates); m > bestRate {
			best, bestRate = p, m
		}
	}
	for _, t := range []*target{ours, best} {
		if _, err := run(t, blockWarm)(); err != nil {
			return Result{}, err
		}
	}
	a, p, err := inTurn(b, j.name, b.rounds(7, 21), run(ours, blockRun), run(best, blockRun))
	if err != nil {
		return Result{}, err
	}
	r := newResult(j.name, j.unit, more, values(a, j.rate), best.name, values(p, j.rate))
	r.bar.ratio = j.bar
	kicks := func(r load.Result) float64 { return float64(r.Kicks) / float64(r.Requests) }
	r.note = fmt.Sprintf("depth %d; doorbells a request: %.3f, peer %.3f", j.job.Depth, median(values(a, kicks)), median(values(p, kicks)))
	return r, nil
}

// makeDisk writes the disk's file, which is in the page cache afterwards.
func makeDisk(path string) error { return makeFile(path, diskBytes) }

func makeFile(path string, bytes int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < bytes; off += int64(len(buf)) {
		load.Pattern(buf, uint64(off))
		if _, err := f.WriteAt(buf, off); err != nil {
			return fmt.Errorf("make the disk image: %w", err)
		}
	}
	return f.Sync()
}
