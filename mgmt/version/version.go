// Package version holds Grail's version.
package version

import "runtime/debug"

// Version is set by the build: -ldflags "-X github.com/grailos/grail/mgmt/version.Version=v0.1.0".
var Version = "dev"

// Full returns the version and, where the build recorded it, the commit.
func Full() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return Version + " (" + s.Value[:12] + ")"
			}
		}
	}
	return Version
}
