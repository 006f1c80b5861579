// Package api is what graild and its clients say to each other: HTTP with JSON bodies over a Unix socket, and a
// second socket over which a client hands descriptors to graild. The client is safe to use from several
// goroutines and survives a restart of graild between two requests.
//
// Routes, all under /v1:
//
//	GET    version                       Version
//	GET    vms                           []VM
//	POST   vms                           CreateVM -> VM
//	GET    vms/{name}                    VM
//	DELETE vms/{name}?force=1
//	POST   vms/{name}/start              StartVM -> VM
//	POST   vms/{name}/stop               StopVM -> VM
//	POST   vms/{name}/signal             SignalVM
//	GET    vms/{name}/wait?generation=N  VM, once that run has ended
//	GET    drivers                       []Driver
//	POST   drivers                       CreateDriver -> Driver
//	GET    drivers/{name}                Driver
//	DELETE drivers/{name}?force=1
//	POST   drivers/{name}/restart        Driver
//	POST   drivers/{name}/crash          CrashDriver -> Driver
//	GET    crashes?driver=NAME           []Crash, oldest first
//	POST   shutdown                      graild ends; every VM runs on
package api
