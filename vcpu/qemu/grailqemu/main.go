// Command grailqemu sets up the jail of one QEMU and becomes it: see qemu.Jail.Launcher. It is started by the engine; its
// arguments are not for people.
package main

import (
	"fmt"
	"os"

	"github.com/grailos/grail/vcpu/qemu"
)

func main() {
	qemu.JailMain()
	fmt.Fprintln(os.Stderr, "grailqemu: this program is started by graild")
	os.Exit(2)
}
