// Command fakevm stands in for grailvm in the scripts.
package main

import "github.com/grailos/grail/mgmt/fakevm"

func main() { fakevm.Main() }
