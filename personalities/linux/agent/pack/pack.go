package pack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/grailos/grail/images/initramfs"
	"github.com/grailos/grail/images/kernel"
	"github.com/grailos/grail/personalities/linux/agent"
)

// modules are what a guest needs of its kernel: devices on either bus, the network, the news of a panic, file systems. The buses come first, as the agent waits for
// a device of theirs. What a kernel does not know is left out, except for what no guest can do without.
var modules = []struct {
	name     string
	required bool
}{
	{"virtio_pci", false}, {"virtio_mmio", false}, {"virtio_console", true}, {"virtio_blk", true}, {"virtio_net", true},
	{"virtio_rng", false}, {"virtio_balloon", false}, {"pvpanic", false}, {"pvpanic_pci", false}, {"ext4", true}, {"erofs", false}, {"squashfs", false}, {"overlay", false}, {"af_packet", false}, {"ipv6", false},
}

// Add adds to t what a guest with the kernel starts with: its modules, and the agent (built from agent/init) at the host path
// program, as /init.
func Add(t *initramfs.Tree, k *kernel.Kernel, program string) error {
	var names []string
	for _, m := range modules {
		if m.required || k.Has(m.name) {
			names = append(names, m.name)
		}
	}
	order, err := k.Modules(names...)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, m := range order {
		path := "/grail/lib/" + m.Name + ".ko"
		t.Data(path, m.Data, 0o644)
		fmt.Fprintln(&list, path)
	}
	t.Data(agent.ModulesPath, []byte(list.String()), 0o644)
	t.File("/init", program, 0o755)
	return nil
}

// Config returns a small archive with the configuration. Appended to the initial file system (initramfs.Concat), it makes one guest of many with the
// same files. Errors: those of Config.Check.
func Config(c *agent.Config) (io.Reader, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	t := &initramfs.Tree{}
	t.Data(agent.ConfigPath, b, 0o600)
	var out bytes.Buffer
	if err := t.Encode(&out); err != nil {
		return nil, err
	}
	return &out, nil
}
