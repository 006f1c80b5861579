package plan

// Path is where the initial file system holds the Plan, as JSON.
const Path = "/plan.json"

// ResultPort is the serial port that takes Results, one JSON object a line. The first port is the console, on
// which the kernel may write in the middle of anybody's line.
const ResultPort = "/dev/ttyS1"

// ExitPort is the I/O port of QEMU's isa-debug-exit device: a byte n written to it ends QEMU with code 2n+1.
const ExitPort = 0xf4

// Bytes for ExitPort. They are no codes that a QEMU gone wrong would end with.
const (
	ExitPass = 0x21
	ExitFail = 0x22
)

// ExitCode returns QEMU's exit code after a byte on ExitPort.
func ExitCode(b byte) int { return 2*int(b) + 1 }

// Plan is what the emulated machine has to do.
type Plan struct {
	// Modules are paths of kernel modules, each behind those that it needs.
	Modules []string
	Steps   []Step
}

// Step is one program to run.
type Step struct {
	Name string
	Argv []string // Argv[0] is a path
	Env  []string // added to a small standard environment
	Dir  string
	// TimeoutSeconds is after how long the step has failed.
	TimeoutSeconds int
	// GoTest says that the program is a compiled Go test run with -test.v: its tests are counted, and the step
	// fails if none of them passed.
	GoTest bool
}

// Result is what became of a step, or of the machine's own preparations.
type Result struct {
	Name    string
	Error   string   `json:",omitempty"` // empty: it passed
	Seconds float64  // wall-clock time inside
	Passed  int      `json:",omitempty"` // of a GoTest
	Skipped []Skip   `json:",omitempty"`
	Failed  []string `json:",omitempty"`
	// Output is the end of what the program printed, if it failed or is no GoTest.
	Output string `json:",omitempty"`
}

// Skip is a test that did not run, and why.
type Skip struct{ Test, Reason string }

// End is the Name of the last Result, without which the machine did not get through.
const End = "end"
