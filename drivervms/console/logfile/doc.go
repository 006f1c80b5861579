// Package logfile is the form of the files in which the console driver VM keeps what VMs print: one file a console, of fixed size, mapped by the driver and
// read by whoever wants to see the log. The newest text is kept. The file is consistent after each store of the writer, so that an end of the driver
// at any moment costs nothing that was written.
//
// The reader trusts neither the writer, a driver VM, nor the text, which is a guest's.
package logfile
