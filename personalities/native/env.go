package native

import "strings"

// defaultEnv is the environment of a native guest before the user's additions.
var defaultEnv = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8"}

// Env returns the guest's environment: the defaults, each overridden by the last of extra with the same name,
// and then what is left of extra, in order. Nothing of the host's environment is in it.
func Env(extra ...string) []string {
	last := map[string]string{}
	for _, kv := range extra {
		k, _, _ := strings.Cut(kv, "=")
		last[k] = kv
	}
	var env []string
	for _, kv := range append(append([]string{}, defaultEnv...), extra...) {
		k, _, _ := strings.Cut(kv, "=")
		if v, ok := last[k]; ok {
			kv = v
			if kv == "" {
				continue
			}
			last[k] = ""
		}
		env = append(env, kv)
	}
	return env
}
