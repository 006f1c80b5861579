package main

// outb writes a byte to an I/O port, which the calling thread must be allowed to use (Intel SDM vol. 2 OUT).
func outb(port uint16, b byte)
