// Command hello is a static program for the scripts.
package main

import "fmt"

func main() { fmt.Println("hello") }
