package vhostuser

// Redirect makes the next Reconnect go elsewhere.
func (f *Frontend) Redirect(path string) { f.path = path }
