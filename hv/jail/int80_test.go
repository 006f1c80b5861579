package jail

// int80 makes a system call by the 32-bit interface.
func int80()
