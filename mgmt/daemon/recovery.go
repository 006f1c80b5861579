package daemon

import (
	"os"
	"sync"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/trace"
)

// recovery is a crash record in the making: from the death of one instance until its successor serves.
type recovery struct {
	d      *Daemon
	crash  api.Crash // the loop's and then the monitor's, one after the other
	report string    // the dead instance's report file
	once   sync.Once
}

// newRecovery writes the record as far as it is known, so that it survives graild.
func (d *Daemon) newRecovery(c api.Crash, report string) *recovery {
	r := &recovery{d: d, crash: c, report: report}
	first := r.crash
	d.store.PutCrashLater(&first)
	return r
}

// complete writes the whole record, in the background: decoding a fault takes longer than recovering from it. Only the
// first call counts; the crash must not change after it. A nil recovery is complete.
func (r *recovery) complete() {
	if r == nil {
		return
	}
	r.once.Do(func() {
		r.d.background.Go(func() {
			c := &r.crash
			until := c.First
			if until.IsZero() {
				until = c.Attached
			}
			if !until.IsZero() {
				c.RecoverMs = float64(until.Sub(c.Crashed).Microseconds()) / 1000
			}
			if c.Report != nil && c.Report.Fault != nil {
				c.Trace = r.d.traceOf(c, c.Report.Fault)
			}
			r.d.store.PutCrashLater(c)
			if !c.OfSpare {
				r.d.log.Info("driver recovered", "driver", c.Driver, "cause", c.Cause, "ms", c.RecoverMs)
			}
			// Until the record is on disk, a next graild finds the report and makes it again.
			if err := r.d.store.Sync(); err == nil {
				_ = os.Remove(r.report)
			}
		})
	})
}

// traceOf decodes a fault of a driver's program.
func (d *Daemon) traceOf(c *api.Crash, f *hv.Fault) *api.Trace {
	var names *trace.Program
	dr, err := d.driver(c.Driver)
	if err != nil {
		return trace.Decode(f, nil)
	}
	if path, err := dr.programPath(c.Program); err == nil {
		if file, err := os.Open(path); err == nil {
			if names, err = trace.Open(file); err != nil {
				d.log.Warn("names for a crash report", "program", path, "error", err)
			}
			file.Close()
		}
	}
	return trace.Decode(f, names)
}
